"""A run that ends early on request, continues to the weights of an uninterrupted one, and leaves nothing large behind."""

import gc
import re

import torch

from fastft.cli import main
from fastft.machine.exits import EXIT_REQUEUE
from fastft.run.checkpoint import list_checkpoints, step_of
from fastft.train import reporting
from tests.train.runs import differing, end, flags, losses, run


def test_the_run_stops_with_75_and_continues_to_the_same_weights(tiny, whole, tmp_path, capsys):
    """A time that is over at once: every process trains one step."""
    command = ["train", "rcp/final_b16.yaml", *flags(tiny, tmp_path / "run", model__drop_path="0.3")]
    for steps in (1, 2):
        assert main([*command, "--train.stop_after=0.001s"]) == EXIT_REQUEUE
        said = capsys.readouterr().err.strip()
        assert len(said.splitlines()) == 1 and f"(train.stop_after) at step {steps}" in said
        assert step_of(list_checkpoints(tmp_path / "run/checkpoints")[-1]) == steps
    assert main(command) == 0
    assert losses(tmp_path / "run") == losses(whole)
    assert differing(end(tmp_path / "run"), end(whole)) == []


def test_time_that_is_up_at_the_last_step_does_not_cost_the_last_evaluation(tiny, tmp_path):
    result = run(
        tiny, tmp_path / "run", optim__batch_size="48", schedule__epochs="1", schedule__warmup_epochs="0",
        train__stop_after="0.001s",
    )  # fmt: skip
    assert result["last"]["epoch"] == 0


def test_a_stopped_run_says_what_is_used_of_it_and_that_its_ema_is_young(tiny, tmp_path, capsys):
    options = flags(tiny, tmp_path / "run", schedule__epochs="6", ema__decay="0.95", optim__batch_size="24")
    command = ["train", "rcp/final_b16.yaml", *options]
    for _ in range(3):  # two steps are an epoch
        assert main([*command, "--train.stop_after=0.001s"]) == EXIT_REQUEUE
    said = capsys.readouterr().out
    assert "of the EMA's weights are still the initial ones" in said
    assert "predict, eval and export use the" in said and "weights of epoch 0" in said
    assert main(["eval", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert "the run has not ended" in capsys.readouterr().err


def test_the_first_steps_on_a_cpu_say_how_long_the_rest_takes(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reporting, "LONG_SECONDS", 1e-4)
    options = flags(tiny, tmp_path / "run", schedule__epochs="2", schedule__warmup_epochs="0")
    command = ["train", "rcp/final_b16.yaml", *options]
    assert main(command) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "left (" in line or "a CPU is slow" in line]
    assert len(said) == 2 and re.fullmatch(r"about .* left \(8 steps at \S+ s, 2 evaluations\)", said[0])
    assert "--schedule.epochs=1 takes about an hour" in said[1]
    monkeypatch.setattr(reporting, "LONG_SECONDS", 3600)
    assert main([*command, "--train.run_dir", str(tmp_path / "other")]) == 0
    assert "a CPU is slow" not in capsys.readouterr().out


def test_a_run_that_is_continued_with_fewer_evaluations_counts_those_that_are_left(tiny, tmp_path, capsys):
    options = flags(tiny, tmp_path / "run", schedule__epochs="6", optim__batch_size="24")  # two steps are an epoch
    command = ["train", "rcp/final_b16.yaml", *options]
    for _ in range(5):  # two evaluations, more than with the other interval
        assert main([*command, "--train.stop_after=0.001s"]) == EXIT_REQUEUE
    capsys.readouterr()
    assert main([*command, "--train.eval_every=6"]) == 0
    assert re.search(r"about .* left \(3 steps at \S+ s, 1 evaluation\)", capsys.readouterr().out)


def parameters() -> int:
    """Parameters that exist, also those that only the garbage collector would free."""
    return sum(isinstance(found, torch.nn.Parameter) for found in gc.get_objects())


def test_the_model_is_freed_when_the_training_returns(tiny, tmp_path):
    """Without the garbage collector, which counts objects and would keep gigabytes for long."""
    run(tiny, tmp_path / "first", schedule__stop_epoch="1")  # what is imported then leaves cycles of its own
    gc.collect()
    before = parameters()
    gc.disable()
    try:
        run(tiny, tmp_path / "second", schedule__stop_epoch="1")
        assert parameters() == before
    finally:
        gc.enable()
