"""Progress and readable numbers: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

ProgressCallback = Callable[
    [int, int, int], None
]  # (images done, images in total, skipped or bad images among those done)

PLAIN_INTERVAL = 10.0  # seconds between lines if stderr is not a terminal
_SUFFIXES = 5  # listed by name; the others are counted together


@contextlib.contextmanager
def progress(title: str) -> Iterator[ProgressCallback]:
    """A callback that shows images done, images per second and time left, on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _PlainProgress(title)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
    )
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task(title, total=None)
        meter = _Meter()

        def show(done: int, total: int, skipped: int) -> None:
            bars.update(bar, completed=done, total=total, rate=meter.text(done, total, skipped))

        yield show


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields.get("rate", ""), style="cyan")


class _Meter:
    """Rate since the first call, so that images of an earlier, resumed run are not counted."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None

    def text(self, done: int, total: int, skipped: int) -> str:
        if self._start is None:
            self._start = (time.monotonic(), done)
        seconds, images = time.monotonic() - self._start[0], done - self._start[1]
        if seconds <= 0 or images == 0:
            return ""
        rate = images / seconds
        text = f"{rate:,.0f} img/s, {duration((total - done) / rate)} left"
        return text + (f", {skipped:,} bad" if skipped else "")


class _PlainProgress:
    def __init__(self, title: str) -> None:
        self._title, self._meter, self._next = title, _Meter(), time.monotonic() + PLAIN_INTERVAL

    def __call__(self, done: int, total: int, skipped: int) -> None:
        text = self._meter.text(done, total, skipped)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_INTERVAL
            print(f"{self._title}: {done:,} of {total:,} images, {text}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes in decimal units, as disks are sold: 138.2 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def by_suffix(counts: Mapping[str, int]) -> str:
    """Counts, the most frequent suffix first: 3 .txt, 1 .xml, 1 without suffix."""
    named = Counter(counts).most_common(_SUFFIXES)
    texts = [f"{count:,} {printable(suffix) or 'without suffix'}" for suffix, count in named]
    if others := sum(counts.values()) - sum(count for _, count in named):
        texts.append(f"{others:,} others")
    return ", ".join(texts)


def printable(text: str) -> str:
    """Text on one line, with control characters and undecodable bytes as escape sequences."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_error(command: str, error: object) -> None:
    """One line on stderr; nothing if stderr was closed."""
    try:
        print(f"{command}: {printable(str(error))}", file=sys.stderr)
    except OSError:
        discard_closed_output()


def use_escapes() -> None:
    """Print escape sequences for characters that stdout cannot encode, such as undecodable bytes of a path."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def discard_closed_output() -> None:
    """Send stdout and stderr to the null device if their terminal or pipe was closed.

    Otherwise Python would fail to flush them when it ends, and exit with code 120.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
