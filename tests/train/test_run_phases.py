"""A run whose images grow and whose patch dropout ends, with sampling, class weights and an EMA that warms up.

Resumed anywhere it equals an uninterrupted one.
"""

import shutil
from pathlib import Path

import pytest
import torch

from beton_tools.read.beton_set import BetonSet
from fastft.machine.precision import Precision
from fastft.machine.processes import find_world
from fastft.model.recipe_model import build_model
from fastft.recipe import load_recipe
from fastft.run.run_directory import load_run
from fastft.train import run_phases
from tests.train.runs import differing, end, flags, logged, losses, result_of, rewind, run

# 6 steps per epoch; phases: 16 px with half of the patches, 24 px with half, 32 px with half, 32 px whole
GROWING = {
    "schedule__epochs": "6", "schedule__sizes": "0:16,2:24,3:32", "model__patch_dropout": "0:0.5,4:0",
    "model__drop_path": "0.3", "schedule__magnitude": "0:1-5:9", "schedule__scale_min": "0:0.5-4:0.08",
    "schedule__erase_prob": "0:0,3:0.5", "data__sampling": "balanced", "optim__class_weights": "sqrt", "ema__warmup": "true",
}  # fmt: skip


@pytest.fixture(scope="module")
def grown(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("grown")
    run(tiny, folder, train__keep_checkpoints="100", **GROWING)
    return folder


def test_it_learns_at_every_size_and_is_evaluated_at_the_last(grown):
    result = result_of(grown)
    assert len(result["evaluations"]) == 6
    assert result["best"]["ema"]["top1"] > 50  # of two balanced classes
    assert end(grown)["model/visual.positional_embedding"].shape == (17, 64)  # of 32 px: 4 x 4 patches


def test_the_log_tells_the_phases_and_its_remaining_time_follows_the_size(grown):
    assert [(p["epoch"], p["image_size"], p["patch_dropout"]) for p in logged(grown, "phase")] == [
        (0, 16, 0.5), (2, 24, 0.5), (3, 32, 0.5), (4, 32, 0.0)
    ]  # fmt: skip
    in_steps = [line["seconds_left"] * line["images_per_second"] / 8 for line in logged(grown, "train")]
    # a step of whole 32 px images takes several times the FLOPs of the first ones
    assert in_steps[0] > 2 * (36 - 1)
    assert in_steps[24:] == pytest.approx(range(11, -1, -1))
    assert load_run(grown).steps_per_epoch == 6


def test_resuming_at_and_around_each_change_continues_the_sequence(tiny, grown, tmp_path):
    for step in (22, 18, 10):
        folder = tmp_path / str(step)
        shutil.copytree(grown, folder)
        rewind(folder, step)
        run(tiny, folder, train__keep_checkpoints="100", **GROWING)
        assert losses(folder) == losses(grown), step
        assert differing(end(folder), end(grown)) == [], step


def test_micro_batches_do_not_change_a_run_that_grows(tiny, grown, tmp_path):
    run(tiny, tmp_path, train__micro_batch="2", data__workers="1", **GROWING)
    small, whole = ([loss for _, loss in losses(folder)] for folder in (tmp_path, grown))
    assert small == pytest.approx(whole, abs=5e-5)


def test_the_micro_batch_is_chosen_for_each_size_and_patch_dropout(tiny, tmp_path, monkeypatch):
    recipe = load_recipe("rcp/final_b16.yaml", flags(tiny, tmp_path, **GROWING))
    model, seen = build_model(recipe), []

    def choose(requested, rank_batch, model, size, precision, **_):
        seen.append((size, model.visual.patch_dropout.rate))
        return 64 // size * 2

    monkeypatch.setattr(run_phases, "choose_micro_batch", choose)
    with find_world("cpu", 1.0, "train.device") as world:
        precision, file = Precision(torch.float32, "cpu"), BetonSet.open(tiny["data.train"])
        phases = run_phases.plan_phases(recipe, model, world, precision, file, 1)
    assert seen == [(16, 0.5), (24, 0.5), (32, 0.5), (32, 0.0)]
    assert [(p.micro_batch, p.accumulation) for p in phases.all] == [(8, 1), (4, 2), (4, 2), (4, 2)]
    flops = [p.flops for p in phases.all]
    assert flops == sorted(flops) and flops[0] < flops[-1] / 4
