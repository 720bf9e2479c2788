"""Progress on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from beton_tools.base.console import ProgressCallback, format_duration, printable, say, silent

PLAIN_INTERVAL = 10.0  # seconds between lines if stderr is not a terminal


@contextmanager
def progress(
    title: str, things: str = "images", unit: str = "img", say: Callable[[str], object] = say
) -> Iterator[ProgressCallback]:
    """Yield a callback that shows how many things are done, their number per second and the time left.

    On a terminal this is a bar on stderr. Elsewhere `say` prints lines. With `silent`, nothing is shown.
    """
    title, console = printable(title), Console(stderr=True)
    if say is silent or not console.is_terminal:
        with progress_lines(title, say, things, unit) as show:
            yield show
        return
    rate = _Rate(unit)
    description, rates = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[rate]}"))
    with Progress(description, BarColumn(), MofNCompleteColumn(), rates, console=console) as bars:
        bar = bars.add_task(title, total=None, rate="")
        yield lambda done, total, bad: bars.update(bar, completed=done, total=total, rate=rate.text(done, total, bad))


@contextmanager
def progress_lines(
    title: str, say: Callable[[str], object], things: str = "images", unit: str = "img"
) -> Iterator[ProgressCallback]:
    """Yield a callback that reports the same on one line, at most every PLAIN_INTERVAL seconds.

    If at least one such line was printed, the end is reported too.
    """
    rate, unsaid, lines, following = _Rate(unit), "", 0, time.monotonic() + PLAIN_INTERVAL

    def show(done: int, total: int, skipped: int) -> None:
        nonlocal unsaid, lines, following
        text = rate.text(done, total, skipped)
        unsaid = f"{title}: {done:,} of {total:,} {things}" + (f", {text}" if text else "")
        if time.monotonic() >= following:
            say(unsaid)
            unsaid, lines, following = "", lines + 1, time.monotonic() + PLAIN_INTERVAL

    yield show
    if lines and unsaid:
        say(unsaid)


class _Rate:
    """The rate since this run's first image, so that neither an earlier run nor starting the processes counts."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._before: int | None = None
        self._start: tuple[float, int] | None = None

    def text(self, done: int, total: int, skipped: int) -> str:
        if self._before is None:
            self._before = done
        if self._start is None and done > self._before:
            self._start = (time.monotonic(), done)
        if self._start is None:
            return ""
        seconds, images = time.monotonic() - self._start[0], done - self._start[1]
        if seconds <= 0 or images == 0:
            return ""
        rate = images / seconds
        text = f"{rate:,.0f} {self._unit}/s, {format_duration((total - done) / rate)} left"
        return text + (f", {skipped:,} bad" if skipped else "")
