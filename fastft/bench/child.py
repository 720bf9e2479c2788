"""A contender's process: builds its arms, then runs one round per request.

The harness starts it as `python -m fastft.bench.child`. The two exchange JSON lines over stdin and stdout, and
libraries' output goes to stderr. The CPU affinity is set before any library that counts cores is imported.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

import psutil

from beton_tools.base.errors import UserError
from beton_tools.base.extras import INSTALL_FFCV

# runs one round; returns the number of images, or several figures, "count" among them if images are counted
Arm = Callable[[], int | dict[str, Any]]


class NotInstalled(Exception):
    """A contender's library is not installed. The message is the command that installs it."""


def library(module: str, package: str) -> Any:
    """Import a peer's module, or raise NotInstalled with the command that installs it."""
    try:
        return import_module(module)
    except ImportError:
        raise NotInstalled(f"pip install {package}") from None


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    order = json.loads(sys.stdin.readline())
    os.sched_setaffinity(0, order["cores"])
    try:
        arms: dict[str, Arm] = getattr(import_module(order["module"]), order["function"])(**order["arguments"])
        answer: dict[str, Any] = {"arms": list(arms)}
    except Exception as error:
        arms, answer = {}, _failure(error)
    print(json.dumps(answer), file=answers)
    for line in sys.stdin:
        print(json.dumps(_trial(arms[json.loads(line)])), file=answers)
    answers.flush()
    os._exit(0)  # because some peers' threads and workers prevent a normal exit


def _trial(arm: Arm) -> dict[str, Any]:
    """Run one round, and return wall and CPU seconds, the arm's own figures, and the cores that other programs used."""
    ours, machine = benchmark_seconds(), machine_seconds()
    workers, own, began = workers_seconds(), time.process_time(), time.perf_counter()
    try:
        result = arm()
    except Exception as error:
        return _failure(error)
    wall, own = time.perf_counter() - began, time.process_time() - own
    cpu = own + workers_seconds() - workers
    machine, ours, whole = machine_seconds() - machine, benchmark_seconds() - ours, time.perf_counter() - began
    figures = result if isinstance(result, dict) else {"count": result}
    if figures.get("count") == 0:  # some libraries skip the images that they cannot read
        return {"failed": "it delivered no images"}
    return {"wall": wall, "cpu": cpu, "foreign": (machine - ours) / whole, **figures}


def _failure(error: Exception) -> dict[str, Any]:
    if isinstance(error, NotInstalled):
        return {"skipped": f"not installed: {error}"}
    if isinstance(error, ModuleNotFoundError) and error.name == "ffcv":
        return {"skipped": f"not installed: {INSTALL_FFCV}"}
    if isinstance(error, UserError):
        return {"failed": str(error), "bad_input": True}
    traceback.print_exc()
    return {"failed": f"{type(error).__name__}: {error}"}


def machine_seconds() -> float:
    """Return the CPU time of all programs on the machine since it started."""
    times = psutil.cpu_times()
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))


def benchmark_seconds() -> float:
    """Return the CPU time of the harness and of all processes that it started."""
    harness = psutil.Process(os.getppid())
    return workers_seconds(harness) + sum(harness.cpu_times()[:2])


def workers_seconds(process: psutil.Process | None = None) -> float:
    """Return the CPU time of this process's current and former workers."""
    own = process or psutil.Process()
    seconds = sum(own.cpu_times()[2:4])  # user and system time for children that have ended
    for worker in own.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            seconds += sum(worker.cpu_times()[:4])  # the worker's own time, and that for its children that have ended
    return seconds


if __name__ == "__main__":
    from fastft.bench import child  # contenders raise this module's NotInstalled, not __main__'s

    child.main()
