"""A run that is killed at random moments ends with the same bits; its log splits the time by part."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastft.run.run_directory import read_metrics
from fastft.train.timing import PARTS, Split
from tests.train.runs import differing, end, flags, losses, run

STEPS = 6 * 12  # 48 images in batches of 8, 12 epochs
CASES = {
    "plain": {},
    "mixup, CutMix, accumulation": {
        "augment__mixup": "0.8",
        "augment__cutmix": "1.0",
        "train__micro_batch": "4",
    },
    "stochastic depth, clipping, every step saved": {
        "model__drop_path": "0.3",
        "model__patch_dropout": "0.25",
        "optim__clip_grad": "1.0",
        "train__checkpoint_steps": "1",
    },
    "patch embedding trained, as at 384": {"model__freeze_conv1": "false"},
    "no EMA, saved at epoch ends only": {"ema__decay": "0", "train__checkpoint_steps": "0"},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_kill_9_at_random_steps_changes_no_bit(tiny, tmp_path: Path, case: str) -> None:
    """Four kills at random steps and a random moment within; then losses, weights, EMA and moments are compared."""
    changes = CASES[case] | {"schedule__epochs": "12"}
    run(tiny, tmp_path / "whole", **changes)
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    command = [sys.executable, "-m", "fastft.cli", "train", "rcp/final_b16.yaml"]
    command += flags(tiny, tmp_path / "killed", **changes)
    targets = sorted(dice.sample(range(1, STEPS - 6), 4))
    ends = [_kill_after(command, tmp_path / "killed", target, dice.uniform(0, 0.03)) for target in targets]
    assert -signal.SIGKILL in ends
    run(tiny, tmp_path / "killed", **changes)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole"), f"seed {seed}"
    assert differing(end(tmp_path / "killed"), end(tmp_path / "whole")) == [], f"seed {seed}"


def _kill_after(command: list[str], folder: Path, step: int, delay: float) -> int:
    """Start, wait until the log reaches `step` and a little longer, then kill -9, unless the run has ended."""
    victim = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while victim.poll() is None and not any(s >= step for s, _ in losses(folder)):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay)
    os.kill(victim.pid, signal.SIGKILL)
    _, said = victim.communicate()
    assert victim.returncode in (0, -signal.SIGKILL), said
    return victim.returncode


def in_steps(line: dict) -> float:
    """Seconds of a log line's steps, without the wait for a process's first batch."""
    return sum(line["split"][part] for part in PARTS if part != "start")


def test_the_loaders_work_is_logged_by_part(whole: Path) -> None:
    epochs = [line["seconds"] for line in read_metrics(whole / "metrics.jsonl") if line["kind"] == "split"]
    for seconds in epochs:  # of 48 images each
        assert seconds["read"] >= 0 and seconds["decode"] > 0 and seconds["augment"] > 0
        # neither nanoseconds nor sums over epochs
        assert seconds["decode"] + seconds["augment"] < 48 * 50e-3


def test_time_split_adds_up_to_the_steps(whole: Path) -> None:
    """In every log line all parts are present, none is negative, and together they are most of the interval, not more."""
    lines = read_metrics(whole / "metrics.jsonl")
    trained = [line for line in lines if line["kind"] == "train"]
    for line in trained:
        seconds = 8 / line["images_per_second"]
        assert set(line["split"]) == {*PARTS, "read", "decode", "augment"}
        assert min(line["split"].values()) >= 0
        assert in_steps(line) <= seconds
    shares = [in_steps(line) * line["images_per_second"] / 8 for line in trained]
    assert sorted(shares)[len(shares) // 2] > 0.5
    # the wait for the first batch of a process, while kernels compile, counts as start
    assert trained[0]["split"]["start"] > 0 and trained[0]["split"]["wait"] == 0
    assert all(line["split"]["start"] == 0 for line in trained[1:])


def test_the_log_names_the_hardware_and_splits_each_epoch(whole: Path) -> None:
    lines = read_metrics(whole / "metrics.jsonl")
    assert lines[0]["kind"] == "start" and lines[0]["precision"] == "float32"
    epochs = [line for line in lines if line["kind"] == "split"]
    assert [line["epoch"] for line in epochs] == [0, 1, 2]
    for line in epochs:
        assert line["seconds"].keys() >= {*PARTS, "eval", "checkpoint"}
        steps = [t["split"]["forward"] for t in lines if t["kind"] == "train" and t["epoch"] == line["epoch"]]
        assert line["seconds"]["forward"] == pytest.approx(sum(steps))


def test_time_before_begin_belongs_to_no_part() -> None:
    split = Split(torch.device("cpu"))
    time.sleep(0.05)
    split.begin()
    split.mark("forward")
    first, second = split.collect(), split.collect()
    assert 0 <= first["forward"] < 0.05
    assert set(second.values()) == {0.0}
