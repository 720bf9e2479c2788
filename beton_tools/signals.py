"""Signals that end a command: one line on stderr and exit code 128 + signal number."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class StoppedBySignal(KeyboardInterrupt):
    """One of STOP_SIGNALS arrived. A KeyboardInterrupt, so that code which cleans up after Ctrl-C does so here too."""

    number = signal.SIGTERM


@contextmanager
def raise_on_stop_signals() -> Iterator[None]:
    """Raise StoppedBySignal in the main thread when one of STOP_SIGNALS arrives.

    A signal that is ignored (nohup ignores SIGHUP) or has a handler keeps its behaviour. Does nothing in other threads.
    """
    replaced = []
    if threading.current_thread() is threading.main_thread():
        replaced = [number for number in STOP_SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in replaced:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


def _raise(number: int, frame: FrameType | None) -> None:
    stop = StoppedBySignal()
    stop.number = signal.Signals(number)
    raise stop


def describe_stop(stop: KeyboardInterrupt) -> str:
    """For the one line: what happened, and the exception's message, if it has one."""
    what = f"stopped by {stop.number.name}" if isinstance(stop, StoppedBySignal) else "interrupted"
    return "; ".join([what, *map(str, stop.args)])


def exit_code(stop: KeyboardInterrupt) -> int:
    number = stop.number if isinstance(stop, StoppedBySignal) else signal.SIGINT
    return 128 + number


@contextmanager
def imports_of(program: str) -> Iterator[None]:
    """While the modules of a program are imported, SIGINT and STOP_SIGNALS end the process with one line.

    The handler ends the process instead of raising: extension modules turn an exception during their import into an
    ImportError, or ignore it. Does nothing where the modules are imported by another program or in a worker process.
    """
    if not _is_main_program(program):
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        what = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
        os.write(2, f"{program}: {what}\n".encode())
        os._exit(128 + number)

    default = {signal.SIGINT: signal.default_int_handler} | dict.fromkeys(STOP_SIGNALS, signal.SIG_DFL)
    replaced = {number: handler for number, handler in default.items() if signal.getsignal(number) is handler}
    for number in replaced:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def _is_main_program(program: str) -> bool:
    """Whether this process was started as `program`, or as `python -m` its package ("-m" while that is imported)."""
    started_as = Path(sys.argv[0]).name if sys.argv else ""
    in_main_thread = threading.current_thread() is threading.main_thread()
    processes = sys.modules.get(
        "multiprocessing.process"
    )  # always there in a worker process; slow to import here
    is_worker = processes is not None and processes.parent_process() is not None
    return started_as in (program, "-m") and in_main_thread and not is_worker
