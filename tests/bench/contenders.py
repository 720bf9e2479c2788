"""Contenders whose times are known, for the harness: they sleep, work or fail as told."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from beton_tools.base.errors import UserError
from fastft.bench.child import Arm, library

BURN = "import time\nwhile time.process_time() < {seconds}: pass"


def noting(name: str, log: str) -> dict[str, Arm]:
    """Writes its name to `log` at each round, for either of two arms."""

    def arm(which: str) -> Arm:
        def run() -> int:
            with Path(log).open("a") as file:
                file.write(f"{name}.{which} ")
            return 1

        return run

    return {"a": arm("a"), "b": arm("b")}


def sleeping(seconds: float) -> dict[str, Arm]:
    return {"a": lambda: time.sleep(seconds) or 10}


def worker(seconds: float) -> dict[str, Arm]:
    """Has a process of its own burn CPU time, and waits for it without any."""

    def run() -> int:
        subprocess.run([sys.executable, "-c", BURN.format(seconds=seconds)], check=True)
        return 10

    return {"a": run}


def disturbed(seconds: float) -> dict[str, Arm]:
    """Sleeps while a process that belongs to nobody burns CPU time."""

    def run() -> int:
        burning = shlex.join([sys.executable, "-c", BURN.format(seconds=seconds)])
        subprocess.run(["sh", "-c", f"{burning} >/dev/null 2>&1 &"], check=True)
        time.sleep(2 * seconds)
        return 10

    return {"a": run}


def described() -> dict[str, Arm]:
    return {"a": lambda: {"count": 1, "cores": len(os.sched_getaffinity(0)), "pid": os.getpid()}}


def missing() -> dict[str, Arm]:
    return {"a": library("no_such_peer", "no-such-peer").run}


def failing_later() -> dict[str, Arm]:
    def run() -> int:
        raise ValueError("this peer breaks")

    return {"a": run}


def empty() -> dict[str, Arm]:
    """Delivers no images, as a library does that skips what it cannot read."""
    return {"a": lambda: {"count": 0}}


def refusing() -> dict[str, Arm]:
    raise UserError("no image at all. Give one")


def dying() -> dict[str, Arm]:
    def run() -> int:
        print("libpeer: cannot map the shard\n", file=sys.stderr, flush=True)
        os._exit(9)

    return {"a": run}


def killed() -> dict[str, Arm]:
    """As the system ends a process when memory runs out, while the contender is built."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}
