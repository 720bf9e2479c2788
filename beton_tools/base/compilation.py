"""Tell the user when Numba compiles, which would look like a hang.

Compiling happens once per machine and version, and takes minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

FIRST, INTERVAL = 1.0, 10.0  # seconds of compiling before the first line, and between lines
Say = Callable[[str], object]


class Notice:
    """Counts the functions being compiled and the time this takes, and reports both. Cached code is not compiled.

    Compilations are nested: the functions that a function calls are compiled during its own compilation. `say` is None
    until `announce_compilation` sets it.
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
        done = ". This happens once per machine and takes minutes"
        if self.said >= 0:
            done = f": {self.functions} functions in {seconds:.0f} s"
        self.said = seconds
        self.say(f"compiling the code that reads and augments images{done}")


_NOTICE = Notice()


def announce_compilation(say: Say | None) -> None:
    """From now on, pass a line to `say` when compiling takes time, and again every 10 seconds.

    With None, nothing is reported.
    """
    _NOTICE.say = say


def watch_compilation() -> None:
    """Register with Numba. Modules with compiled functions call this on import, because it imports Numba."""
    from numba.core import event

    class Listener(event.Listener):
        def on_start(self, _: Any) -> None:
            _NOTICE.start()

        def on_end(self, _: Any) -> None:
            _NOTICE.end()

    event.register("numba:compile", Listener())
