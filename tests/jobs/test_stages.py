"""A run that ends within or between its stages is continued by the same command, and gives the same bits."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastft.choose import choose
from fastft.cli import main
from fastft.evaluate.linear_probe import FEATURES
from fastft.head import fit_head as fit
from fastft.jobs import run as stages
from fastft.recipe import FinalRecipe, load_recipe
from fastft.run.checkpoint import list_checkpoints
from fastft.run.run_directory import load_run, read_choices
from tests.photos.conftest import album, tower  # noqa: F401 - fixtures
from tests.train.runs import differing, end, losses, result_of, run, wait_for

AUTO = {
    "model__head_init": "probe", "augment__policy": "auto", "augment__scale_min": "auto", "augment__hflip": "auto",
    "train__keep_checkpoints": "100",
}  # fmt: skip


class Killed(BaseException):
    """What ends a process where nothing can be caught."""


def kill(*arguments: object) -> None:
    raise Killed


@pytest.fixture(scope="module")
def uninterrupted(tiny: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages") / "whole"
    run(tiny, folder, **AUTO)
    return folder


def same(folder: Path, other: Path) -> bool:
    """Return True if two runs chose, fitted and trained the same."""
    choices, heads = ((f / "choices.json", f / "probe.safetensors") for f in (folder, other))
    return (
        [path.read_bytes() for path in choices] == [path.read_bytes() for path in heads]
        and losses(folder) == losses(other)
        and differing(end(folder), end(other)) == []
        and result_of(folder)["evaluations"] == result_of(other)["evaluations"]
    )


# where the process ends -> the files that are there then
ENDS = {
    "while augmentation is compared": (choose, "compare_losses", {FEATURES}),
    "before the choices are written": (choose, "write_choices", {FEATURES, "recipe.yaml"}),
    "between choosing and fitting": (stages, "prepare_head", {FEATURES, "recipe.yaml", "choices.json"}),
    "before the baseline is written": (
        fit, "write_baseline", {FEATURES, "recipe.yaml", "choices.json", "probe.safetensors", "training_labels.json"}
    ),
    "between fitting and training": (
        stages, "train", {"recipe.yaml", "choices.json", "probe.safetensors", "baseline.json", "training_labels.json"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("where", ENDS)
def test_a_run_that_ends_before_the_first_step_is_continued(tiny, uninterrupted, tmp_path, monkeypatch, where):
    module, function, expected = ENDS[where]
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(module, function, kill)
        run(tiny, tmp_path / "run", **AUTO)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", *expected}
    run(tiny, tmp_path / "run", **AUTO)
    assert same(tmp_path / "run", uninterrupted)


def test_a_finished_stage_is_skipped(tiny, uninterrupted, tmp_path, monkeypatch):
    """Also before there is a checkpoint: neither probes nor features are computed again."""
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(stages, "train", kill)
        run(tiny, tmp_path / "run", **AUTO)
    monkeypatch.setattr(choose, "_Probing", None)
    monkeypatch.setattr(fit, "probe_of_run", None)
    run(tiny, tmp_path / "run", **AUTO)
    assert same(tmp_path / "run", uninterrupted)


def test_before_the_first_checkpoint_another_command_chooses_anew(tiny, uninterrupted, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(stages, "train", kill)
        run(tiny, tmp_path / "run", **AUTO | {"augment__policy": "none", "train__seed": "1"})
    before = (tmp_path / "run/baseline.json").read_bytes()
    run(tiny, tmp_path / "run", **AUTO)
    assert (tmp_path / "run/baseline.json").read_bytes() != before
    assert same(tmp_path / "run", uninterrupted)


def test_the_recipe_of_a_run_has_no_open_options(uninterrupted):
    recipe, choices = load_run(uninterrupted).recipe, read_choices(uninterrupted) or {}
    values = recipe.flat()
    assert isinstance(recipe, FinalRecipe) and not hasattr(recipe, "automatic")
    assert {"augment.policy", "augment.scale_min", "augment.hflip"} <= choices.keys()
    assert all(values[option] == choice.value for option, choice in choices.items())
    assert all(choices[option].evidence for option in ("augment.policy", "augment.hflip"))


def test_explain_counts_as_training_does(album, tower, tmp_path, capsys):  # noqa: F811
    options = [f"--data.train={album}", *tower]
    assert main(["explain", "photos", *options, "--json"]) == 0
    explained = json.loads(capsys.readouterr().out)
    _, result = stages.run_recipe(load_recipe("photos", [*options, f"--train.run_dir={tmp_path / 'run'}"]))
    assert explained["cost"]["val_images"]["value"] == result.last.raw.samples == 7
    assert explained["recipe"]["data"]["train_size"] == result.baseline.images == 29
    trained = read_choices(tmp_path / "run") or {}
    assert [choice["option"] for choice in explained["choices"]] == list(trained)


@pytest.mark.slow
@pytest.mark.parametrize("appears", [FEATURES, "choices.json", "probe.safetensors", "baseline.json", "checkpoints"])
def test_a_run_that_is_killed_when_a_file_appears_is_continued(tiny, uninterrupted, tmp_path, appears):
    folder = tmp_path / "run"
    values = tiny | {"train.run_dir": str(folder)} | {key.replace("__", "."): value for key, value in AUTO.items()}
    command = [
        sys.executable,
        "-m",
        "fastft.cli",
        "train",
        "rcp/final_b16.yaml",
        *(f"--{k}={v}" for k, v in values.items()),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: process.poll() is not None or (folder / appears).exists())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "result.json").exists()
    run(tiny, folder, **AUTO)
    assert same(folder, uninterrupted) and list_checkpoints(folder / "checkpoints")
