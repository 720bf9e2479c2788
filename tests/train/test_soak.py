"""One run directory is disturbed at random: every run ends with the bits of an undisturbed one.

An hour: FASTFT_EXTENT=60 pytest -m slow -s tests/train/test_soak.py
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fastft.machine.exits import EXIT_REQUEUE
from fastft.run.checkpoint import list_checkpoints, read_checkpoint
from tests import EXTENT
from tests.run.test_damage import CASES
from tests.train.runs import differing, end, flags, losses

SECONDS = 60 * EXTENT
EPOCHS, STEPS_PER_EPOCH = 60, 6
# Two micro-batches per step: the sum of two gradients has the same bits on one process and on two.
CHANGES = {
    "model__drop_path": "0.3", "augment__mixup": "0.8", "schedule__epochs": str(EPOCHS), "train__micro_batch": "4",
    "train__checkpoint_steps": "2", "train__keep_checkpoints": "4", "train__eval_every": "7",
}  # fmt: skip
PORT = 29671


@dataclass
class Soak:
    """The disturbed run, and what was done to it."""

    tiny: dict[str, str]
    folder: Path
    dice: random.Random
    done: Counter[str] = field(default_factory=Counter)
    port: int = PORT

    def start(self, world_size: int = 1, **options) -> subprocess.Popen[str]:
        """The command, on one process or two, one thread each."""
        self.port += 1
        arguments = ["train", "rcp/final_b16.yaml", *flags(self.tiny, self.folder, **CHANGES)]
        program = ["-m", "fastft.cli"]
        if world_size > 1:
            program = ["-m", "fastft.train.launch", f"--nproc-per-node={world_size}", f"--master-port={self.port}"]
        return subprocess.Popen(
            [sys.executable, *program, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True, **options,
        )  # fmt: skip

    def wait_for_progress(self, process: subprocess.Popen[str]) -> None:
        """Until some more steps are logged, or only a little, to meet the start as well."""
        steps = self.dice.choice([0, 1, 5, 20, 60])
        before, deadline = len(losses(self.folder)), time.monotonic() + 120
        while steps and process.poll() is None and len(losses(self.folder)) < before + steps:
            assert time.monotonic() < deadline, self.dump(process)
            time.sleep(0.01)
        time.sleep(self.dice.uniform(0, 0.2) if steps else self.dice.uniform(0, 10))

    def finish(self, process: subprocess.Popen[str], allowed: set[int]) -> None:
        try:
            _, error = process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            pytest.fail(self.dump(process))
        assert process.returncode in allowed, (process.returncode, error)
        assert "Traceback" not in error, error

    def dump(self, process: subprocess.Popen[str]) -> str:
        process.send_signal(signal.SIGABRT)  # PYTHONFAULTHANDLER prints the stacks
        return f"it hangs: {process.communicate()[1]}"

    # disturbances -----------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        process = self.start(self.dice.choice([1, 1, 2]))
        self.wait_for_progress(process)
        with suppress(ProcessLookupError):  # the run has ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        self.finish(process, {0, -signal.SIGKILL})

    def kill_one_of_two(self) -> None:
        """The other process, which loses its peer, ends by itself."""
        process = self.start(2)
        self.wait_for_progress(process)
        ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        with suppress(OSError):  # the run has ended by itself
            for rank in ranks.read_text().split()[-1:]:
                os.kill(int(rank), signal.SIGKILL)
        self.finish(process, {0, 1, EXIT_REQUEUE})

    def send_signal(self) -> None:
        number = self.dice.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
        process = self.start()
        self.wait_for_progress(process)
        process.send_signal(number)
        self.finish(process, {0, EXIT_REQUEUE, 128 + number, -number})

    def fill_the_disk(self) -> None:
        """No file may grow beyond a limit, as on a full disk: of the log or of a checkpoint."""
        limit = self.dice.choice([2_000, 50_000, 200_000, 400_000])
        process = self.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        self.finish(process, {0, 2})

    def damage_the_newest(self) -> None:
        found = list_checkpoints(self.folder / "checkpoints")
        if len(found) < 2 or not all(map(is_whole, found[-2:])):
            return
        CASES[self.dice.choice([c for c in CASES if "checksums" not in c])][0](found[-1])


def is_whole(path: Path) -> bool:
    from beton_tools.base.errors import UserError

    try:
        read_checkpoint(path, ("model", "optimizer", "ema"), resumable=True)
    except UserError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 3600)
def test_a_run_that_is_disturbed_at_random_ends_with_the_same_bits(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    seed = random.randrange(1 << 32)
    print(f"\nsoak test of {SECONDS:.0f} s, seed {seed}")
    soak = Soak(tiny, tmp_path / "whole", random.Random(seed))
    soak.finish(soak.start(), {0})
    whole, folder = end(tmp_path / "whole"), tmp_path / "disturbed"
    soak.folder = folder
    disturbances: list[Callable[[], None]] = [
        soak.kill, soak.kill, soak.kill_one_of_two, soak.send_signal, soak.send_signal, soak.fill_the_disk,
        soak.damage_the_newest, soak.damage_the_newest,
    ]  # fmt: skip
    began, rounds = time.monotonic(), 0
    while time.monotonic() - began < SECONDS:
        shutil.rmtree(folder, ignore_errors=True)
        while not (folder / "result.json").exists():
            disturb = soak.dice.choice(disturbances)
            disturb()
            soak.done[disturb.__name__] += 1
        soak.finish(soak.start(), {0})  # the last disturbance may have damaged the last checkpoint
        assert differing(end(folder), whole) == [], f"seed {seed}, round {rounds}, {dict(soak.done)}"
        assert [step for step, _ in losses(folder)] == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
        rounds += 1
        print(f"round {rounds}, {time.monotonic() - began:.0f} s: {dict(soak.done)}", flush=True)
