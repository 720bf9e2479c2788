"""`train.stop_after` ends a run with a checkpoint; resumes go on and end with the weights of an uninterrupted run."""

import re
from pathlib import Path

import pytest

from fastft.cli import main
from fastft.run.checkpoint import list_checkpoints, step_of
from fastft.train import reporting
from fastft.train.exceptions import EXIT_REQUEUE
from tests.train.runs import differing, end, flags, losses, run

LONG = {"schedule__epochs": "6", "train__checkpoint_steps": "0"}


@pytest.fixture(scope="module")
def uninterrupted(tiny: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(tiny, folder, **LONG)
    return folder


def test_the_run_stops_with_75_and_continues_to_the_same_weights(tiny, uninterrupted, tmp_path, capsys):
    """A time that is over at once: every process trains one step."""
    command = ["train", "rcp/final_b16.yaml", *flags(tiny, tmp_path / "run", **LONG)]
    for steps in (1, 2):
        assert main([*command, "--train.stop_after=0.001s"]) == EXIT_REQUEUE
        said = capsys.readouterr().err.strip()
        assert len(said.splitlines()) == 1 and f"(train.stop_after) at step {steps}" in said
        assert step_of(list_checkpoints(tmp_path / "run/checkpoints")[-1]) == steps
    assert main(command) == 0
    assert losses(tmp_path / "run") == losses(uninterrupted)
    assert differing(end(tmp_path / "run"), end(uninterrupted)) == []


def test_time_that_is_up_at_the_last_step_does_not_cost_the_last_evaluation(tiny, tmp_path):
    result = run(
        tiny, tmp_path / "run", optim__batch_size="48", schedule__epochs="1", schedule__warmup_epochs="0",
        train__stop_after="0.001s",
    )  # fmt: skip
    assert result["last"]["epoch"] == 0


def test_a_stopped_run_says_what_is_used_of_it_and_that_its_ema_is_young(tiny, tmp_path, capsys):
    options = flags(tiny, tmp_path / "run", **LONG, ema__decay="0.95", optim__batch_size="24")
    command = ["train", "rcp/final_b16.yaml", *options]
    for _ in range(3):  # two steps are an epoch
        assert main([*command, "--train.stop_after=0.001s"]) == EXIT_REQUEUE
    said = capsys.readouterr().out
    assert "of the EMA's weights are still the initial ones" in said
    assert "predict, eval and export take the" in said and "weights of epoch 0" in said
    assert main(["eval", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert "the run has not ended" in capsys.readouterr().err


def test_the_first_steps_on_a_cpu_say_how_long_the_rest_takes(tiny, tmp_path, monkeypatch, capsys):
    """Four of 12 steps are done, and none of 2 evaluations."""
    monkeypatch.setattr(reporting, "LONG_SECONDS", 1e-4)
    command = [
        "train",
        "rcp/final_b16.yaml",
        *flags(tiny, tmp_path / "run", schedule__epochs="2"),
        "--train.log_every=1",
    ]
    assert main([*command, "--schedule.warmup_epochs=0"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "to go" in line or "a CPU is slow" in line]
    assert len(said) == 2 and re.fullmatch(r"about .* to go: 8 steps of \S+ s and 2 evaluations", said[0])
    assert "--schedule.epochs=1 takes about an hour" in said[1]
    monkeypatch.setattr(reporting, "LONG_SECONDS", 3600)
    assert main([*command, "--schedule.warmup_epochs=0", "--train.run_dir", str(tmp_path / "other")]) == 0
    assert "a CPU is slow" not in capsys.readouterr().out
