"""Signals that end a command: one line on stderr and exit code 128 + signal number."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from beton_tools.base import torchrun

# Batch systems announce a job's end with SIGTERM, SIGUSR1, SIGUSR2 or SIGXCPU. A closed terminal sends SIGHUP.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


class StoppedBySignal(KeyboardInterrupt):
    """SIGINT or one of STOP_SIGNALS arrived. This is a KeyboardInterrupt, so code that cleans up after one works."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = signal.Signals(number)


def in_main_thread() -> bool:
    """Return True in the main thread. Python allows signal handlers to be set only there."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def raise_on_stop_signals(command: str) -> Iterator[None]:
    """Raise StoppedBySignal in the main thread when SIGINT or one of STOP_SIGNALS arrives.

    Where an exception has no effect, the process prints one line and ends instead. This is so while a module is imported,
    as in `imports_of` (commands import most of their modules when they run), and in destructors and callbacks from C, such
    as LLVM's.

    A signal that is ignored (nohup ignores SIGHUP) or has a handler keeps its behaviour. In other threads this does
    nothing.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if _is_importing(frame):
            _end(command, number)
        received.append(number)
        raise StoppedBySignal(number)

    def unraisable(ignored: sys.UnraisableHookArgs) -> None:
        if isinstance(ignored.exc_value, StoppedBySignal):
            _end(command, ignored.exc_value.number)
        previous(ignored)

    if not in_main_thread():
        yield
        return
    previous, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        with _handlers(handle):
            yield
    except Exception as error:  # a library turned the exception into another one
        if not received:
            raise
        raise StoppedBySignal(received[0]) from error
    finally:
        sys.unraisablehook = previous


@contextmanager
def _handlers(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Set `handle` for SIGINT and STOP_SIGNALS where they have Python's default handlers."""
    default = {signal.SIGINT: signal.default_int_handler} | dict.fromkeys(STOP_SIGNALS, signal.SIG_DFL)
    replaced = {number: handler for number, handler in default.items() if signal.getsignal(number) is handler}
    for number in replaced:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def describe_stop(stop: KeyboardInterrupt) -> str:
    """Describe what happened, and append the exception's message if it has one."""
    return ". ".join([_describe(_number(stop)), *map(str, stop.args)])


def exit_code(stop: KeyboardInterrupt) -> int:
    return 128 + _number(stop)


def leave(code: int) -> NoReturn:
    """End a program after a signal: run its exit handlers, but do not dismantle it, which takes seconds with Numba or torch."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed
            stream.flush()
    os._exit(code)


def _number(stop: KeyboardInterrupt) -> int:
    return stop.number if isinstance(stop, StoppedBySignal) else signal.SIGINT


def _describe(number: int) -> str:
    return "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"


@contextmanager
def imports_of(program: str) -> Iterator[None]:
    """End the process with one line if SIGINT or one of STOP_SIGNALS arrives while a program's modules are imported.

    The handler ends the process instead of raising, because extension modules ignore an exception during their import
    or turn it into an ImportError. This does nothing where another program or a worker process imports the modules.
    """
    if not _is_main_program(program):
        yield
        return

    with _handlers(lambda number, frame: _end(program, number)):
        yield


def _is_importing(frame: FrameType | None) -> bool:
    """Return True if a signal interrupted code that runs as part of an import."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _end(command: str, number: int) -> None:
    """Print one line and end the process with exit code 128 + number.

    If several processes run on a host, only local rank 0 prints the line.
    """
    if torchrun.local_rank() == 0:
        os.write(2, f"{command}: {_describe(number)}\n".encode())
    os._exit(128 + number)


def _is_main_program(program: str) -> bool:
    """Return True if this process runs `program`, or `python -m` its package ("-m" while that is imported)."""
    started_as = Path(sys.argv[0]).name if sys.argv else ""
    # every worker process has loaded it. Importing it here would take longer than the rest of this module
    processes = sys.modules.get("multiprocessing.process")
    is_worker = processes is not None and (
        processes.parent_process() is not None
        or getattr(processes.current_process(), "_inheriting", False)  # being set up, it runs the main script again
    )
    return started_as in (program, "-m") and in_main_thread() and not is_worker


@contextmanager
def hint_when_interrupted() -> Iterator[None]:
    """Tell the user, when a signal or Ctrl-C ends the block, that the same command continues the conversion.

    This sentence becomes the exception's message.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.args = ("The same command continues the conversion",)
        raise
