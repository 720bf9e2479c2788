"""A run goes on as if it had never been stopped, refuses another recipe, and stops when the loss is no number."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from beton_tools.errors import UserError
from fastft.train.checkpoint import step_checkpoints
from fastft.train.health import NonFinite
from fastft.train.preempt import EXIT_REQUEUE
from tests.train.runs import flags, losses, run


def test_it_learns(whole: Path) -> None:
    first, last = losses(whole)[0][1], losses(whole)[-1][1]
    result = json.loads((whole / "result.json").read_text())
    assert last < first
    assert result["last"]["raw"]["samples"] == 20
    assert result["best"]["ema"]["top1"] >= 50


def test_kill_9_and_resume_gives_the_same_losses_bit_for_bit(tiny, whole: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastft.cli", "train", "rcp/final_b16.yaml"]
    command += flags(tiny, tmp_path, model__drop_path="0.3")
    victim = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(losses(tmp_path)) < 5:
        assert victim.poll() is None and time.monotonic() < deadline, victim.stderr and victim.stderr.read()
        time.sleep(0.005)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    run(tiny, tmp_path, model__drop_path="0.3")
    assert losses(tmp_path) == losses(whole)


def test_resuming_in_the_middle_of_an_epoch_continues_the_sequence(tiny, whole: Path, tmp_path: Path) -> None:
    """The newest checkpoints are removed one by one: from every one left the losses are the same."""
    run(tiny, tmp_path, model__drop_path="0.3", train__keep_checkpoints="100")
    for path in reversed(step_checkpoints(tmp_path / "checkpoints")):
        if path.name in ("step-00000008", "step-00000004"):
            run(tiny, tmp_path, model__drop_path="0.3", train__keep_checkpoints="100")
            assert losses(tmp_path) == losses(whole)
        for file in path.iterdir():
            file.unlink()
        path.rmdir()


def test_a_signal_checkpoints_and_exits_with_the_requeue_code(tiny, whole: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastft.cli", "train", "rcp/final_b16.yaml"]
    command += flags(tiny, tmp_path, model__drop_path="0.3", train__checkpoint_steps="0")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(losses(tmp_path)) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=120)
    assert process.returncode == EXIT_REQUEUE, said
    assert "same command continues" in said
    run(tiny, tmp_path, model__drop_path="0.3", train__checkpoint_steps="0")
    assert losses(tmp_path) == losses(whole)


def test_accumulation_and_workers_do_not_change_the_training(tiny, tmp_path: Path) -> None:
    """The same images in the same steps: losses agree to rounding."""
    runs = {}
    for micro, workers in (("8", "1"), ("2", "2")):
        folder = tmp_path / micro
        run(tiny, folder, train__micro_batch=micro, data__workers=workers, schedule__stop_epoch="1")
        runs[micro] = [loss for _, loss in losses(folder)]
    assert runs["2"] == pytest.approx(runs["8"], abs=2e-5)


def test_a_changed_recipe_is_refused_with_the_keys_that_differ(tiny, whole: Path) -> None:
    with pytest.raises(UserError, match=r"optim\.lr 0\.001 -> 0\.01"):
        run(tiny, whole, model__drop_path="0.3", optim__lr="1e-2")


def test_a_finished_run_only_tells_its_result(tiny, whole: Path) -> None:
    before = losses(whole)
    result = run(tiny, whole, model__drop_path="0.3")
    assert losses(whole) == before
    assert result["epochs"] == 3


def test_a_non_finite_loss_stops_and_names_step_samples_and_checkpoint(tiny, tmp_path: Path) -> None:
    with pytest.raises(NonFinite, match=r"at step \d+ \(samples \d+.*checkpoint"):
        run(tiny, tmp_path, optim__lr="1e30", train__checkpoint_steps="1")
    for path in step_checkpoints(tmp_path / "checkpoints"):
        from fastft.train.checkpoint import read_checkpoint

        assert all(torch.isfinite(v).all() for v in read_checkpoint(path).tensors["model"].values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__train": "none"}, "no training data"),
        ({"data__train": "nowhere.beton"}, "nowhere.beton"),
        ({"optim__batch_size": "7", "train__micro_batch": "2"}, "does not divide"),
        ({"optim__batch_size": "4096"}, "do not fill one batch"),
        ({"model__image_size": "30"}, "multiple of the patch size"),
        ({"augment__policy": "rand-x9"}, "rand-x9"),
    ],
)
def test_bad_input_is_one_line(tiny, tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        run(tiny, tmp_path, **change)
    assert "\n" not in str(error.value)
