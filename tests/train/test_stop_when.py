"""`train.stop_when` ends a run without gain, by training images that `data.selection_share` leaves out."""

from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from beton_tools.base.typed_json import check
from beton_tools.read.beton_set import BetonSet
from fastft.jobs.sweep import PlannedRun, read_result
from fastft.recipe import load_recipe
from fastft.run.chosen_weights import choose_weights
from fastft.run.evaluations import ByWeights, Evaluation, Paired, Scores, best_evaluation
from fastft.run.inputs import open_inputs
from fastft.run.run_directory import load_run
from fastft.train.progress import Progress
from tests.train.runs import differing, end, flags, losses, result_of, run
from tests.train.test_distributed import launch, said_by

# nothing is learnt, so there is never a gain
STILL = {"optim__lr": "0", "schedule__min_lr": "0", "schedule__epochs": "8", "train__checkpoint_steps": "2"}
STILL |= {"schedule__warmup_epochs": "0"}
SHARE = {"data__selection_share": "0.25"}


def scores(top1: float, samples: int = 100) -> Scores:
    return Scores(top1=top1, samples=samples, loss=1.0)


def scored(*top1: float) -> list[Evaluation]:
    return [Evaluation(epoch=k, raw=scores(t)) for k, t in enumerate(top1)]


def is_stalled(evaluations: list[Evaluation], patience: int | None, warmup: int = 0) -> bool:
    """After so many epochs that the EMA is trained."""
    recipe = load_recipe("final_b16", [f"--train.stop_when={patience or 'none'}", f"--schedule.warmup_epochs={warmup}"])
    return Progress(epoch=50, evaluations=evaluations).is_stalled(recipe)


@pytest.mark.parametrize(
    ("top1", "patience", "stalled"),
    [
        ([50, 51, 52], 1, False), ([50, 51, 51], 1, True), ([50, 51, 50, 49], 2, True), ([50, 51, 50, 52], 2, False),
        ([50], 1, False), ([], 1, False), ([50, 40, 30], None, False),
    ],
)  # fmt: skip
def test_patience_counts_evaluations_since_the_best(top1, patience, stalled):
    assert is_stalled(scored(*top1), patience) == stalled
    assert not is_stalled(scored(*top1), patience, warmup=len(top1))


def test_the_weights_that_are_chosen_and_the_left_out_images_decide():
    ema = [structs.replace(e, ema=scores(10 + k)) for k, e in enumerate(scored(50, 49, 48))]
    assert not is_stalled(ema, 1)  # the EMA gains
    far_ahead = [structs.replace(e, raw_against_ema=Paired(first_only=40, second_only=1)) for e in ema]
    assert is_stalled(far_ahead, 1)  # raw is significantly better, and does not gain
    selection = [
        structs.replace(e, selection=ByWeights(raw=scores(60.0 + k, 3000))) for k, e in enumerate(scored(50, 49, 48))
    ]
    assert not is_stalled(selection, 1)
    best = best_evaluation(selection)
    choice = choose_weights(selection, best)
    assert best is selection[2] and choice is not None
    assert (choice.take, choice.epoch, choice.top1) == ("best", 2, 48)
    assert "3,000 left-out images" in choice.reason


@pytest.fixture(scope="module")
def stopped(tiny: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    run(tiny, folder, train__stop_when="2", **STILL, **SHARE)
    return folder


def test_a_run_stops_and_is_the_run_of_so_many_epochs(tiny, stopped, tmp_path):
    result = result_of(stopped)
    assert result["epochs"] == 3 and "after 3 of 8 epochs, because 2 evaluations showed no gain" in result["stopped"]
    run(tiny, tmp_path, schedule__stop_epoch="3", **STILL, **SHARE)
    assert losses(tmp_path) == losses(stopped) and differing(end(tmp_path), end(stopped)) == []
    found = load_run(stopped)
    assert found.stopped == result["stopped"]
    assert found.evaluations[0].selection.raw.samples == 12 and found.evaluations[0].raw.samples == 20
    assert read_result(PlannedRun("", found.recipe, stopped, "ema")) == check(
        "it", result["evaluations"], list[Evaluation]
    )
    assert read_result(PlannedRun("", found.recipe, tmp_path, "ema")) is None


def test_a_stopped_run_is_not_continued_but_with_more_patience(tiny, stopped, tmp_path):
    first = run(tiny, tmp_path, train__stop_when="1", **STILL, **SHARE)
    assert run(tiny, tmp_path, train__stop_when="1", **STILL, **SHARE)["evaluations"] == first["evaluations"]
    assert first["epochs"] == 2
    assert run(tiny, tmp_path, train__stop_when="2", **STILL, **SHARE)["epochs"] == 3
    assert losses(tmp_path) == losses(stopped) and differing(end(tmp_path), end(stopped)) == []
    assert run(tiny, tmp_path, schedule__stop_epoch="1", **STILL, **SHARE)["epochs"] == 3  # beyond its end


def test_the_left_out_images_are_a_share_of_every_class_and_are_not_trained_on(tiny, tmp_path):
    whole = BetonSet.open(tiny["data.train"])
    recipe = load_recipe("final_b16", flags(tiny, tmp_path, **SHARE))
    _, files = open_inputs(recipe)
    kept, left = files.train, files.selection
    assert left is not None and len(left) == recipe.selection_images(len(whole)) == 12
    assert sorted([*kept.ids_in_files, *left.ids_in_files]) == list(range(48))
    assert np.bincount(left.labels).tolist() == [6, 6]
    _, files = open_inputs(load_recipe("final_b16", flags(tiny, tmp_path)))
    assert len(files.train) == len(whole) and files.selection is None


def test_without_other_images_the_left_out_ones_are_evaluated(tiny, tmp_path):
    result = run(tiny, tmp_path, data__val="none", train__stop_when="1", **STILL, **SHARE)
    assert result["epochs"] == 2 and result["last"]["raw"]["samples"] == 12
    assert "whose accuracy is therefore too high" in result["stopped"]


@pytest.mark.parametrize("changes", [{"data__val": "none"}, {}])
def test_it_is_refused_where_only_reported_images_or_none_are_there(tiny, tmp_path, changes, monkeypatch, refused):
    monkeypatch.setattr("fastft.run.inputs.is_imagenet", lambda recipe: True)
    assert "--data.selection_share=0.1" in refused(
        ["train", "final_b16", *flags(tiny, tmp_path / "run", train__stop_when="2", **changes)]
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_stop_where_one_does(tiny, stopped, tmp_path):
    options = flags(tiny, tmp_path, train__stop_when="2", train__micro_batch="2", **STILL, **SHARE)
    said_by(launch("train", "rcp/final_b16.yaml", *options))
    results = [result_of(folder) for folder in (tmp_path, stopped)]
    assert results[0]["stopped"] == results[1]["stopped"]
    assert [e["selection"]["ema"]["samples"] for e in results[0]["evaluations"]] == [12] * 3
