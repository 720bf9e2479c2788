"""The harness: one process per contender, alternating rounds (A B A B ...), every round kept.

Each contender has its own process on the same cores, so that threads, memory and patched libraries are not shared. The
first round compiles and warms up, and is not counted. The order within each round is drawn at random, so that nobody
always runs after the same contender. Ratios are taken round by round, because other load on the machine slows both
sides.
"""

import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from beton_tools.base.errors import UserError
from fastft.bench import PEERS
from fastft.bench.child import Arm
from fastft.bench.dataset import Workspace
from fastft.recipe import Recipe

Trial = dict[str, Any]  # wall and CPU seconds, number of images, and an arm's own figures
Make = Callable[..., dict[str, Arm]]
GRACE_SECONDS = 10
TRIAL_SECONDS = 1800  # time limit for a round
SHOWN_LINES = 12  # lines shown from a failed contender's stderr
LONGEST_REASON = 200  # characters of a line
drawing = random.Random()  # draws the order of contenders; `fastft bench` seeds it


@dataclass(frozen=True)
class Contender:
    """`make` is a module-level function that builds the arms.

    The contender's process imports it, calls it with `arguments`, and gets arms by name. differences: how the work
    differs from fastft's. package: the package whose version is stored. limit: this is not a library, but what the
    hardware or a codec allows.
    """

    name: str
    make: Make
    arguments: dict[str, Any]
    differences: tuple[str, ...] = ()
    package: str | None = None
    limit: bool = False


@dataclass(frozen=True)
class Options:
    """Options for all benchmarks. `quick` runs every path once, with meaningless results."""

    workspace: Workspace
    rounds: int
    threads: int  # all cores that this process may use
    quick: bool = False
    peers: tuple[str, ...] = PEERS
    recipe: Recipe | None = None  # for e2e
    own: str | None = None  # "my_loader.py:make", the user's own loader

    @property
    def images(self) -> int:
        return len(self.workspace.images.paths)


@dataclass
class Rounds:
    """Every round by contender and arm, the order of each round, and the reason why a contender was skipped."""

    contenders: dict[str, Contender] = field(default_factory=dict)
    trials: dict[str, dict[str, list[Trial]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    order: list[list[str]] = field(default_factory=list)  # the contenders in each counted round

    def draw_order(self, names: Sequence[str], is_counted: bool) -> list[str]:
        drawn = drawing.sample(names, len(names))
        if is_counted:
            self.order.append(drawn)
        return drawn

    def run(self, processes: Mapping[str, "_Process"], order: Sequence[str], is_counted: bool = True) -> None:
        """Run a round for every arm, in this order of contenders."""
        for arm in dict.fromkeys(arm for process in processes.values() for arm in process.arms):
            for name in order:
                trial = processes[name].trial(arm)
                if trial is not None and is_counted:
                    self.trials.setdefault(name, {}).setdefault(arm, []).append(trial)


def show_progress(text: str, of_round: str = "") -> None:
    """Do nothing; `fastft bench` replaces this."""


def alternate(contenders: Sequence[Contender], rounds: int, threads: int) -> Rounds:
    """Run 1 + `rounds` rounds for every arm, alternating between contenders, on `threads` cores.

    Raises:
        UserError: fastft cannot use this input.
        RuntimeError: a fastft contender fails. A failing peer is reported as skipped instead.
    """
    result = Rounds({c.name: c for c in contenders})
    names = f"{', '.join(result.contenders)}, {threads} core{'s' * (threads > 1)}"
    show_progress(names)
    with ExitStack() as stack:
        processes = [stack.enter_context(_started(c, threads, result)) for c in contenders]
        running = {p.contender.name: p for p in processes if p.ready()}
        for number in range(1 + rounds):
            show_progress(names, f"round {number + 1} of {1 + rounds}: ")
            result.run(running, result.draw_order(list(running), number > 0), number > 0)
    return result


def alternate_fresh(contenders: Sequence[Contender], rounds: int, threads: int) -> Rounds:
    """Like `alternate`, with a new process for each contender in every round, and with every round counted."""
    result = Rounds({c.name: c for c in contenders})
    names = f"{', '.join(result.contenders)}, a new process per round"
    show_progress(names)
    for number in range(rounds):
        show_progress(names, f"round {number + 1} of {rounds}: ")
        for name in result.draw_order([c.name for c in contenders if c.name not in result.skipped], is_counted=True):
            with _started(result.contenders[name], threads, result) as process:
                if process.ready():
                    result.run({name: process}, [name])
    return result


class _Process:
    """A contender's process. arms: their names, none before it is ready or after it failed."""

    def __init__(self, contender: Contender, process: subprocess.Popen[str], errors: Any, result: Rounds) -> None:
        self.contender, self.process, self.errors, self.result = contender, process, errors, result
        self.arms: list[str] = []

    def ready(self) -> bool:
        answer = self._answer("arms")
        self.arms = answer["arms"] if answer else []
        return answer is not None

    def trial(self, arm: str) -> Trial | None:
        """Run one round. Returns None if this contender has no such arm or has failed."""
        if arm not in self.arms:
            return None
        with suppress(BrokenPipeError):  # the process ended after its last round, which `_answer` reports
            print(json.dumps(arm), file=self.process.stdin, flush=True)
        return self._answer("wall")

    def _answer(self, key: str) -> dict[str, Any] | None:
        """Return the answer, which has `key`, or record a missing or failing peer as skipped. If fastft fails, raise.

        There is one line per request, so nothing remains in the buffer.
        """
        assert self.process.stdout is not None
        if select.select([self.process.stdout], [], [], TRIAL_SECONDS)[0]:
            line = self.process.stdout.readline()
            answer: dict[str, Any] = json.loads(line) if line else {"failed": self._end_reason()}
        else:
            self.process.kill()
            answer = {"failed": f"no answer within {TRIAL_SECONDS // 60} minutes"}
        if key in answer:
            return answer
        self.arms = []
        name, why = self.contender.name, answer.get("skipped") or answer["failed"].partition("\n")[0]
        if name.startswith("fastft") and answer.get("bad_input"):
            raise UserError(why)
        if "failed" in answer and name.startswith("fastft"):
            raise RuntimeError(f"{name} failed: {why}\n{''.join(self._lines()[-SHOWN_LINES:])}")
        self.result.skipped[name] = why
        self.result.trials.pop(name, None)
        return None

    def _end_reason(self) -> str:
        """Say how the process ended, with the last line that it wrote to stderr."""
        code = self.process.wait()
        how = f"ended with exit code {code}"
        if code < 0:
            name = signal.Signals(-code).name
            how = f"was ended by {name}{', perhaps because memory ran out' * (name == 'SIGKILL')}"
        last = next((line.strip() for line in reversed(self._lines()) if line.strip()), "")
        return f"its process {how}{f': {last[:LONGEST_REASON]}' if last else ''}"

    def _lines(self) -> list[str]:
        """Return what the process wrote to stderr."""
        self.errors.seek(0)
        lines: list[str] = self.errors.readlines()
        return lines


@contextmanager
def _started(contender: Contender, threads: int, result: Rounds) -> Iterator[_Process]:
    """Start the contender's process on this process's first `threads` cores. It ends with the block, or is killed."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    count = str(len(cores))
    environment = os.environ | {"NUMBA_NUM_THREADS": count, "OMP_NUM_THREADS": count}
    environment["OPENCV_FOR_THREADS_NUM"] = "1"  # stock FFCV calls OpenCV's resize inside its own threads
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "fastft.bench.child"], text=True, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        try:
            order = {
                "module": contender.make.__module__, "function": contender.make.__qualname__,
                "arguments": contender.arguments, "cores": cores,
            }  # fmt: skip
            print(json.dumps(order), file=process.stdin, flush=True)
            yield _Process(contender, process, errors, result)
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()  # ends it
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
