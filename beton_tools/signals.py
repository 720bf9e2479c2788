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
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class StoppedBySignal(KeyboardInterrupt):
    """One of STOP_SIGNALS arrived. A KeyboardInterrupt, so that code which cleans up after Ctrl-C does so here too."""

    number = signal.SIGTERM


@contextmanager
def raise_on_stop_signals(command: str | None = None) -> Iterator[None]:
    """Raise StoppedBySignal in the main thread when one of STOP_SIGNALS arrives.

    With the name of a command, SIGINT and STOP_SIGNALS end the process with one line while a module is being imported, as
    `imports_of` does: commands import most of their modules when they run.

    A signal that is ignored (nohup ignores SIGHUP) or has a handler keeps its behaviour. Does nothing in other threads.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if command is not None and _is_importing(frame):
            _end(command, number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        stop = StoppedBySignal()
        stop.number = signal.Signals(number)
        raise stop

    replaced: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        replaced = _default_handlers(STOP_SIGNALS if command is None else (signal.SIGINT, *STOP_SIGNALS))
    for number in replaced:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, default in replaced.items():
            signal.signal(number, default)


def _default_handlers(numbers: tuple[signal.Signals, ...]) -> dict[signal.Signals, Any]:
    """The default handlers of those signals that have them now."""
    defaults = {n: signal.default_int_handler if n == signal.SIGINT else signal.SIG_DFL for n in numbers}
    return {n: default for n, default in defaults.items() if signal.getsignal(n) is default}


def _is_importing(frame: FrameType | None) -> bool:
    """Whether the code that a signal interrupted runs as part of an import."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _end(command: str, number: int) -> None:
    """End the process with one line and exit code 128 + number."""
    what = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    os.write(2, f"{command}: {what}\n".encode())
    os._exit(128 + number)


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

    replaced = _default_handlers((signal.SIGINT, *STOP_SIGNALS))
    for number in replaced:
        signal.signal(number, lambda n, _: _end(program, n))
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def _is_main_program(program: str) -> bool:
    """Whether this process was started as `program`, or as `python -m` its package ("-m" while that is imported)."""
    started_as = Path(sys.argv[0]).name if sys.argv else ""
    in_main_thread = threading.current_thread() is threading.main_thread()
    # present in every worker process; importing it here would take longer than the rest of this module
    processes = sys.modules.get("multiprocessing.process")
    is_worker = processes is not None and processes.parent_process() is not None
    return started_as in (program, "-m") and in_main_thread and not is_worker
