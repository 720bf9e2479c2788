"""Signals that end a command: one line on stderr and exit code 128 + signal number."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from beton_tools.base import torchrun

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_RETRY_SECONDS = 0.1  # after an exception was lost or postponed
# their functions leave a lock acquired, or a thread running that no pool knows, if a signal handler raises in them: what
# waits for it afterwards, such as the end of a pool, would wait for ever
_INTERRUPTED_NOWHERE = ("concurrent", "queue", "threading")
_WAITS = ("wait", "join", "_wait_for_tstate_lock")  # of them, those that wait, and hold nothing meanwhile


class StoppedBySignal(KeyboardInterrupt):
    """SIGINT or one of STOP_SIGNALS arrived. A KeyboardInterrupt, for code that cleans up after one."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = signal.Signals(number)


@contextmanager
def raise_on_stop_signals(command: str | None = None) -> Iterator[None]:
    """Raise StoppedBySignal in the main thread when SIGINT or one of STOP_SIGNALS arrives.

    With the name of a command, a signal that arrives while a module is being imported ends the process with one line, as in
    `imports_of`: commands import most of their modules when they run.

    A signal that is ignored (nohup ignores SIGHUP) or has a handler keeps its behaviour. Does nothing in other threads.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    raiser = _Raiser(command, sys.unraisablehook)
    with _handlers(raiser.handle), _unraisable_hook(raiser.retry):
        try:
            yield
        except Exception as error:  # a library failed because it lost the exception
            if raiser.received is None:
                raise
            raise StoppedBySignal(raiser.received) from error
        finally:
            raiser.cancel()


class _Raiser:
    """Raises StoppedBySignal where no lock of the standard library is held, and again if Python had to ignore it.

    That happens where the interpreter runs the handler in a destructor or a callback from C, such as LLVM's while Numba
    compiles.
    """

    def __init__(
        self, command: str | None, previous_hook: Callable[[sys.UnraisableHookArgs], object]
    ) -> None:
        self.received: int | None = None
        self._command = command
        self._previous_hook = previous_hook
        self._postponed_at: object = None
        self._postponed_since = 0.0
        self._pending: object = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self._command is not None and _is_importing(frame):
            _end(self._command, number)
        if self._is_inside_locking(frame):
            self._send_again(number)
            return
        self.received = number
        self.cancel()
        raise StoppedBySignal(number)

    def retry(self, unraisable: sys.UnraisableHookArgs) -> None:
        """As `sys.unraisablehook`, which is called with an exception that is ignored."""
        if not isinstance(unraisable.exc_value, StoppedBySignal):
            self._previous_hook(unraisable)
            return
        self._send_again(unraisable.exc_value.number)

    def _is_inside_locking(self, frame: FrameType | None) -> bool:
        """Return True if the interrupted code belongs to _INTERRUPTED_NOWHERE, and is not blocked in a wait.

        It is blocked if an earlier signal found it at the same place. A wait that polls has a new frame each time.
        """
        # a second signal while the first is handled
        while frame is not None and frame.f_globals is globals():
            frame = frame.f_back
        if frame is None or frame.f_globals.get("__name__", "").partition(".")[0] not in _INTERRUPTED_NOWHERE:
            return False
        place = (frame.f_code if frame.f_code.co_name in _WAITS else frame, frame.f_lasti)
        if place != self._postponed_at:
            self._postponed_at, self._postponed_since = place, time.monotonic()
        # two signals may come at once
        return time.monotonic() - self._postponed_since < _RETRY_SECONDS / 2

    def _send_again(self, number: int) -> None:
        """Send the signal after a moment. Not by threading.Timer, whose locks the interrupted code may hold."""

        def send(main: int) -> None:
            time.sleep(_RETRY_SECONDS)
            if self._pending is this:
                signal.pthread_kill(main, number)

        self._pending = this = object()
        _thread.start_new_thread(send, (threading.get_ident(),))

    def cancel(self) -> None:
        """Send no signal any more: it would interrupt what ends after the first, or meet the default handlers."""
        self._pending = self._postponed_at = None


@contextmanager
def _handlers(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle SIGINT and STOP_SIGNALS, those that have Python's default handlers."""
    default = {signal.SIGINT: signal.default_int_handler} | dict.fromkeys(STOP_SIGNALS, signal.SIG_DFL)
    replaced = {number: handler for number, handler in default.items() if signal.getsignal(number) is handler}
    for number in replaced:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


@contextmanager
def _unraisable_hook(hook: Callable[[sys.UnraisableHookArgs], object]) -> Iterator[None]:
    previous, sys.unraisablehook = sys.unraisablehook, hook
    try:
        yield
    finally:
        sys.unraisablehook = previous


def describe_stop(stop: KeyboardInterrupt) -> str:
    """For the one line: what happened, and the exception's message, if it has one."""
    return "; ".join([_describe(_number(stop)), *map(str, stop.args)])


def exit_code(stop: KeyboardInterrupt) -> int:
    return 128 + _number(stop)


def _number(stop: KeyboardInterrupt) -> int:
    return stop.number if isinstance(stop, StoppedBySignal) else signal.SIGINT


def _describe(number: int) -> str:
    return "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"


@contextmanager
def imports_of(program: str) -> Iterator[None]:
    """While the modules of a program are imported, SIGINT and STOP_SIGNALS end the process with one line.

    The handler ends the process instead of raising: extension modules turn an exception during their import into an
    ImportError, or ignore it. Does nothing where the modules are imported by another program or in a worker process.
    """
    if not _is_main_program(program):
        yield
        return

    with _handlers(lambda number, frame: _end(program, number)):
        yield


def _is_importing(frame: FrameType | None) -> bool:
    """Whether the code that a signal interrupted runs as part of an import."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _end(command: str, number: int) -> None:
    """End the process with exit code 128 + number and one line; of several processes on a host local rank 0 prints it."""
    if torchrun.local_rank() == 0:
        os.write(2, f"{command}: {_describe(number)}\n".encode())
    os._exit(128 + number)


def _is_main_program(program: str) -> bool:
    """Whether this process was started as `program`, or as `python -m` its package ("-m" while that is imported)."""
    started_as = Path(sys.argv[0]).name if sys.argv else ""
    in_main_thread = threading.current_thread() is threading.main_thread()
    # present in every worker process; importing it here would take longer than the rest of this module
    processes = sys.modules.get("multiprocessing.process")
    is_worker = processes is not None and (processes.parent_process() is not None or runs_main_again())
    return started_as in (program, "-m") and in_main_thread and not is_worker


def runs_main_again() -> bool:
    """Return True in a worker process that multiprocessing is setting up, when it runs the main script again."""
    from multiprocessing import process

    return getattr(process.current_process(), "_inheriting", False)


@contextmanager
def hint_when_interrupted() -> Iterator[None]:
    """Add to an interruption, by Ctrl-C or another signal, that the same command continues the conversion."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.args = ("the same command continues the conversion",)
        raise
