"""A refit that is killed again and again, twice in quick succession too, ends with the bits of an undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastft.run.result import read_result
from tests.train.runs import differing, end, flags, losses, wait_for

# Moments at which the command is killed, in the order in which it reaches them.
MOMENTS: dict[str, Callable[[Path], bool]] = {
    "the first run has ended": lambda run: (run / "result.json").exists(),
    "the refit's recipe is final": lambda run: (run / "refit/recipe.yaml").exists(),
    "the refit has its head": lambda run: (run / "refit/probe.safetensors").exists(),
    "the refit's first checkpoint is being written, or has been": lambda run: any(
        (run / "refit/checkpoints").glob("*step-*")
    ),
    "the refit has trained some steps": lambda run: len(losses(run / "refit")) >= 7,
}


@pytest.fixture
def start(tiny) -> Callable[[Path], subprocess.Popen]:
    """`start(folder)`: the command, in a process group of its own."""

    def started(folder: Path) -> subprocess.Popen:
        options = flags(
            tiny, folder, train__refit="true", model__head_init="probe", augment__policy="none", schedule__epochs="9"
        )
        return subprocess.Popen(
            [sys.executable, "-m", "fastft.cli", "train", "rcp/final_b16.yaml", *options],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    return started


@pytest.mark.slow
def test_a_refit_that_is_killed_at_any_moment_ends_with_the_same_bits(start, tmp_path):
    whole, folder, seed = tmp_path / "whole", tmp_path / "run", random.randrange(1 << 32)
    assert start(whole).wait() == 0
    assert read_result(whole).weights.kind != "probe", "a refit of a linear probe trains no steps"
    for name, has_come in MOMENTS.items():
        for seconds in (0.0, random.Random(f"{seed}/{name}").uniform(0, 6)):  # the second kill: while it starts, mostly
            process = start(folder)
            if seconds:
                time.sleep(seconds)
            else:
                wait_for(lambda has_come=has_come: has_come(folder), process)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert start(folder).wait() == 0
    for run in ("", "refit"):
        assert differing(end(folder / run), end(whole / run)) == [], (run, seed)
    assert read_result(folder / "refit").weights == read_result(whole / "refit").weights
    assert not [path for path in folder.rglob("*") if ".partial" in path.name]
