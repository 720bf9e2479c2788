"""Says that Numba compiles: it happens once per machine and version, takes minutes, and would look like a hang."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

FIRST, INTERVAL = 1.0, 10.0  # seconds of compiling before the first line, and between lines
Say = Callable[[str], object]


class Notice:
    """Counts the functions that are compiled and the seconds of it, and says so; code from the cache is not compiled.

    Functions are nested: those that a function calls are compiled while it is. say: None until somebody wants to know.
    """

    def __init__(self) -> None:
        self.say: Say | None = None
        self.depth, self.functions = 0, 0
        self.seconds, self.began, self.said = 0.0, 0.0, -INTERVAL

    def start(self) -> None:
        if self.depth == 0:
            self.began = time.monotonic()
        self.depth += 1
        self._tell()

    def end(self) -> None:
        self.functions += 1
        self._tell()
        self.depth -= 1
        if self.depth == 0:
            self.seconds += time.monotonic() - self.began

    def _tell(self) -> None:
        seconds = self.seconds + time.monotonic() - self.began
        if self.say is None or seconds < FIRST or seconds < self.said + INTERVAL:
            return
        done = "; this happens once per machine and takes minutes"
        if self.said >= 0:
            done = f": {self.functions} functions in {seconds:.0f} s"
        self.said = seconds
        self.say(f"compiling the code that reads and augments images{done}")


_NOTICE = Notice()


def announce_compilation(say: Say | None) -> None:
    """From now on give `say` a line when compiling takes time, and then every 10 seconds; None: nothing is said."""
    _NOTICE.say = say


def watch_compilation() -> None:
    """Register with Numba. Modules with compiled functions call it when they are imported: it imports Numba."""
    from numba.core import event

    class Listener(event.Listener):
        def on_start(self, _: Any) -> None:
            _NOTICE.start()

        def on_end(self, _: Any) -> None:
            _NOTICE.end()

    event.register("numba:compile", Listener())
