"""The values that followed from the images are stored in the run directory, and a resume uses them."""

import json

import pytest
from rich.console import Console

from beton_tools.base.errors import UserError
from fastft.choose import automatic
from fastft.jobs.run import run_recipe as train
from fastft.recipe import load_recipe
from fastft.run.checkpoint import list_checkpoints, step_of
from fastft.run.run_directory import load_run, read_choices
from tests.train.runs import differing, end, losses, rewind

QUIET = Console(quiet=True)


def test_a_resume_uses_the_values_that_the_run_was_started_with(album, tower, tmp_path, monkeypatch):
    options = [f"--data.train={album}", f"--train.run_dir={tmp_path / 'run'}", *tower]
    train(load_recipe("photos", [*options, "--schedule.stop_epoch=2"]), QUIET)
    stored = {name: choice.value for name, choice in (read_choices(tmp_path / "run") or {}).items()}
    assert stored["optim.lr"] == pytest.approx(5e-4 / 2 * 12 / 70)  # 12 steps
    assert stored["data.num_classes"] == 3
    assert {c["option"] for c in json.loads((tmp_path / "run" / "choices.json").read_text())["choices"]} == set(stored)
    began = losses(tmp_path / "run")

    monkeypatch.setitem(automatic.RULES, "optim.lr", lambda recipe: (1e-2, "another rule"))
    monkeypatch.setitem(automatic.RULES, "ema.horizon", lambda recipe: (0.5, "another rule"))
    train(load_recipe("photos", options), QUIET)
    assert losses(tmp_path / "run")[: len(began)] == began and len(losses(tmp_path / "run")) == 2 * len(began)
    again = load_run(tmp_path / "run").recipe
    assert (again.optim.lr, again.ema.horizon) == (stored["optim.lr"], 0.16)
    with pytest.raises(UserError, match=r"holds another run: optim\.lr"):
        train(load_recipe("photos", [*options, "--optim.lr=1e-2"]), QUIET)


@pytest.mark.slow
def test_epochs_without_a_checkpoint_are_trained_again_after_a_crash(album, tower, tmp_path):

    def options(name: str) -> list[str]:
        every = ["--train.checkpoint_epochs=3", "--train.keep_checkpoints=9", "--train.checkpoint_steps=0"]
        # the last epoch is the only one that can be the best
        own = ["--schedule.epochs=7", "--train.eval_every=7"]
        return [f"--data.train={album}", f"--train.run_dir={tmp_path / name}", *tower, *every, *own]

    train(load_recipe("photos", options("run")), QUIET)
    saved = list_checkpoints(tmp_path / "run" / "checkpoints")
    # 3 steps per epoch; 0: the fitted head
    assert [step_of(path) // 3 for path in saved if step_of(path)] == [3, 6, 7]
    whole, losses_of_whole = end(tmp_path / "run"), losses(tmp_path / "run")
    rewind(tmp_path / "run", 9)
    train(load_recipe("photos", options("run")), QUIET)
    assert differing(whole, end(tmp_path / "run")) == [] and losses(tmp_path / "run") == losses_of_whole
