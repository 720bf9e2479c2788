"""Checkpoints of a run: when they are written, in the background, and never with NaN or Inf."""

import itertools
import math
import time
from typing import Any

import pytest

from beton_tools.base.errors import UserError
from fastft.machine.exits import NonFinite
from fastft.run.checkpoint import list_checkpoints, step_of, write_checkpoint
from fastft.run.run_directory import lock_run
from fastft.train.step import Step
from tests.train.runs import differing, end, logged, losses, rewind, run


def spoil_gradients(monkeypatch: pytest.MonkeyPatch, value: float, steps: range) -> None:
    """Set one gradient of the head to `value` in these updates of the process."""
    update, done = Step.update, itertools.count()

    def spoiled(step: Step, is_logged: bool) -> None:
        if next(done) in steps:
            step.model.head.weight.grad[0, 0] = value
        update(step, is_logged)

    monkeypatch.setattr(Step, "update", spoiled)


def test_weights_with_nan_are_never_saved(tiny, tmp_path, monkeypatch):
    """The loss shows a bad gradient one step later: too late for a checkpoint of every step, of which one is kept."""
    changes = {"train__checkpoint_steps": "1", "train__keep_checkpoints": "1"}
    with monkeypatch.context() as spoiled:
        spoil_gradients(spoiled, math.nan, range(4, 5))
        with pytest.raises(NonFinite, match=r"the weights contain NaN or Inf at step 4 .*step-00000004"):
            run(tiny, tmp_path, **changes)
    run(tiny, tmp_path, **changes)
    run(tiny, tmp_path / "whole", **changes)
    assert losses(tmp_path) == losses(tmp_path / "whole")


def test_a_second_moment_that_overflows_stops_the_run(tiny, tmp_path, monkeypatch):
    """The square of a large finite gradient is Inf in fp32: its weight would never move again."""
    spoil_gradients(monkeypatch, 1e30, range(4, 5))
    with pytest.raises(NonFinite, match="the optimiser's moments contain NaN or Inf at step 5"):
        run(tiny, tmp_path)


def test_the_run_directory_is_locked_before_its_checkpoints_are_read(tiny, tmp_path, monkeypatch):
    run(tiny, tmp_path, schedule__stop_epoch="1")
    monkeypatch.setattr("fastft.train.checkpointing.list_checkpoints", lambda folder: pytest.fail("it was read"))
    with lock_run(tmp_path), pytest.raises(UserError, match="in use by another process"):
        run(tiny, tmp_path, schedule__stop_epoch="1")


def test_checkpoints_by_steps_are_also_made_at_the_end_of_an_epoch(tiny, tmp_path):
    by_steps = {"train__checkpoint_steps": "6", "train__checkpoint_epochs": "100", "train__eval_every": "100"}
    run(tiny, tmp_path, **by_steps)
    assert [line["step"] for line in logged(tmp_path, "checkpoint")][:2] == [6, 12]


def test_the_last_epoch_is_evaluated_and_the_last_and_the_best_are_saved_whatever_the_intervals(tiny, tmp_path):
    never = {"train__checkpoint_steps": "0", "train__checkpoint_epochs": "100"}
    run(tiny, tmp_path / "once", **never, train__eval_every="100")
    (only,) = logged(tmp_path / "once", "eval")
    result = run(tiny, tmp_path / "each", **never)
    assert only["epoch"] == result["last"]["epoch"] == len(logged(tmp_path / "each", "eval")) - 1
    last = list_checkpoints(tmp_path / "each/checkpoints")
    best = list_checkpoints(tmp_path / "each/checkpoints", "best")
    assert step_of(last[-1]) == logged(tmp_path / "each", "train")[-1]["step"]
    assert [int(path.name.removeprefix("best-")) for path in best] == [result["best"]["epoch"]]
    run(tiny, tmp_path / "blind", **never, data__val="none")
    assert [step_of(path) for path in list_checkpoints(tmp_path / "blind/checkpoints")] == [step_of(last[-1])]


def slow_writer(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Writing a checkpoint takes at least so long."""

    def slowly(*arguments: Any) -> None:
        time.sleep(seconds)
        write_checkpoint(*arguments)

    monkeypatch.setattr("fastft.train.checkpointing.write_checkpoint", slowly)


def test_training_goes_on_while_a_checkpoint_is_written(tiny, tmp_path, monkeypatch):
    slow_writer(monkeypatch, 1.0)
    began = time.time()
    run(tiny, tmp_path, schedule__stop_epoch="1", train__checkpoint_steps="2")
    times = {line["step"]: line["time"] - began for line in logged(tmp_path, "train")}
    (first, *_) = logged(tmp_path, "checkpoint")
    assert first["step"] == 2 and first["seconds"] < 0.5
    assert times[4] - times[2] < 0.5
    # at the end every write is waited for: of steps 2 and 4, the best, and step 6
    assert time.time() - began > 4
    assert [p.name for p in list_checkpoints(tmp_path / "checkpoints")] == ["step-00000004", "step-00000006"]


@pytest.mark.slow
def test_a_checkpoint_is_of_the_step_that_saved_it_though_training_goes_on(tiny, whole, tmp_path, monkeypatch):
    """The weights change while they are written; resuming from what was written gives the uninterrupted losses."""
    with monkeypatch.context() as slow:
        slow_writer(slow, 0.3)
        changes = {"model__drop_path": "0.3", "train__keep_checkpoints": "100"}
        run(tiny, tmp_path, train__checkpoint_steps="4", **changes)
    rewind(tmp_path, 4)
    run(tiny, tmp_path, **changes)
    assert losses(tmp_path) == losses(whole)
    assert differing(end(tmp_path), end(whole)) == []


def test_a_write_that_fails_ends_the_training_before_the_next_save(tiny, tmp_path, monkeypatch):
    def full(*arguments: Any) -> None:
        raise UserError("checkpoint could not be written: No space left on device")

    monkeypatch.setattr("fastft.train.checkpointing.write_checkpoint", full)
    with pytest.raises(UserError, match="No space left"):
        run(tiny, tmp_path, schedule__epochs="1000", train__checkpoint_steps="2", train__eval_every="1000")
    assert losses(tmp_path)[-1][0] < 12
