"""Readable numbers, and text that is safe to print."""

from __future__ import annotations

import errno
import io
import math
import os
import re
import resource
import select
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from beton_tools.base.errors import UserError, first_line
from beton_tools.base.signals import describe_stop, exit_code

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# (images done, images in total, skipped or bad images among those done)
ProgressCallback = Callable[[int, int, int], None]

EXIT_BAD_INPUT = 2
ENDINGS = UserError, KeyboardInterrupt, OSError, MemoryError, ImportError  # exceptions that end a command with one line
# Address space (ulimit -v) that importing Numba takes, in bytes. With less, OpenBLAS may ask for memory for ever.
LEAST_MEMORY = 700e6
WIDEST = 10_000  # characters per line, more than any table needs
_OF_THE_DISK = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
_PARTIAL = re.compile(r"\.partial-[0-9a-f]{8}-")  # `atomic_path`'s name for a file that is being written
_LOGIN = re.compile(r"\b([a-z][a-z0-9+.-]*://)[^\s/?#'\"]*@", re.IGNORECASE)
_QUERY = re.compile(r"\b([a-z][a-z0-9+.-]*://[^\s?'\"]*)\?[^\s'\",;)>\]]*", re.IGNORECASE)
_SUFFIXES = 5  # listed by name. The others are counted together


def make_console(*, stderr: bool = False, quiet: bool = False, lasting: bool = False) -> Console:
    """Create a console that prints text unchanged: no markup, no coloured numbers, no emoji codes.

    Args:
        lasting: For work such as a training run, whose result is more than its output. The command continues when
            nobody reads stdout any more. Otherwise BrokenPipeError ends it.
    """
    from rich.console import Console

    file = cast(IO[str], LastingOutput(sys.stdout)) if lasting else None
    console = Console(stderr=stderr, file=file, quiet=quiet, markup=False, highlight=False, emoji=False)
    console.on_broken_pipe = _raise_broken_pipe  # type: ignore[method-assign]  # rich's ends the program with exit code 1
    return console


def _raise_broken_pipe() -> None:
    raise BrokenPipeError


class LastingOutput:
    """Text stream that discards its text once its terminal or pipe is closed, or its disk is full.

    Args:
        stream: The stream to write to. None discards all text: `sys.stdout` is None in a program started without one.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                return self._stream.write(text)
            except OSError:
                discard_closed_output()
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except OSError:
                discard_closed_output()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def format_duration(seconds: float) -> str:
    """Format seconds as 45 s, 3 min 20 s or 5 h 04 min, and infinity as "no limit"."""
    if math.isinf(seconds):
        return "no limit"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60:,} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def counted(number: int, what: str) -> str:
    """Return a number with its noun, which is given in the plural: 1,281,167 images, 1 image, 1 class."""
    one = what.removesuffix("es") if what.endswith(("sses", "xes")) else what.removesuffix("s")
    return f"1 {one}" if number == 1 else f"{number:,} {what}"


def format_bytes(count: float) -> str:
    """Format bytes in decimal units, as disks are sold: 138.2 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def by_suffix(counts: Mapping[str, int]) -> str:
    """Format counts by suffix, the most frequent first, then by name: 3 .txt, 1 without suffix, 1 .xml."""
    named = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:_SUFFIXES]
    texts = [f"{count:,} {printable(suffix) or 'without suffix'}" for suffix, count in named]
    if others := sum(counts.values()) - sum(count for _, count in named):
        texts.append(f"{others:,} others")
    return ", ".join(texts)


def printable(text: str) -> str:
    """Return the text on one line, with control characters and undecodable bytes as escape sequences."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def hide_secrets(text: str) -> str:
    """Remove user names, passwords and queries from the URLs in a text. Queries may hold signatures and tokens."""
    return _QUERY.sub(r"\1", _LOGIN.sub(r"\1", text))


def compact_table(title: str | None, header: Sequence[str], rows: Iterable[Sequence[str]] = (), left: int = 1) -> Table:
    """Create a table without vertical lines and with little padding, for 80-column terminals.

    The first `left` columns are left-aligned and folded where they are too wide. The others are right-aligned and never
    cut.
    """
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for k, name in enumerate(header):
        table.add_column(
            Text(printable(name)), justify="right" if k >= left else "left", no_wrap=k >= left, overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def print_table(table: Table, console: Console) -> None:
    """Print a table without cutting a word or a cell in a `no_wrap` column.

    Lines exceed the console's width if necessary.

    Columns of numbers need `no_wrap`, so that other columns are folded first.
    """
    from rich.measure import Measurement

    unlimited = console.options.update(max_width=WIDEST)
    for column in table.columns:
        cells = [Measurement.get(console, unlimited, cell) for cell in (column.header, *column.cells)]
        column.min_width = max(cell.maximum if column.no_wrap else cell.minimum for cell in cells)
    if (needed := Measurement.get(console, unlimited, table).minimum) > console.width:
        table.width = needed
    console.print(table, crop=False)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Format a Markdown table. The first `left` columns are left-aligned, the others right-aligned."""
    rule = ["---" if k < left else "---:" for k in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def print_printable(text: str) -> None:
    """Print one line on stdout, in which a path cannot move the cursor or change the terminal's colours."""
    print(printable(text), flush=True)


def silent(text: str) -> None:
    """Print nothing. Use it as the `say` argument for a quiet call."""


def say(text: str) -> None:
    """Print one line on stderr, or nothing if nobody reads it any more."""
    print(printable(text), file=LastingOutput(sys.stderr), flush=True)


def print_error(command: str, error: object) -> None:
    """Print an error with `say`, without the secrets in URLs."""
    say(f"{command}: {hide_secrets(str(error))}")


def print_warnings_in_one_line(command: str) -> None:
    """Print library warnings, such as Pillow's about damaged Exif data, as `print_error` does.

    The place in the code is left out.
    """

    def show(message: Warning | str, *place: object, **more: object) -> None:
        print_error(command, "warning: " + " ".join(str(message).split()))

    warnings.showwarning = show


def end_command(error: BaseException, show: Callable[[object], None]) -> int:
    """Print the line for an exception listed in ENDINGS, and return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        show(describe_stop(error))
        return exit_code(error)
    if isinstance(error, OSError):  # the file, if known, and the reason: no space, no permission, no such file
        if discard_closed_output() and isinstance(error, BrokenPipeError):
            return 0  # the reader of our output, such as head, has what it wanted
        show(_describe_os_error(error))
    elif isinstance(error, MemoryError):
        show("not enough memory. Give the command more memory, or use fewer workers")
    elif isinstance(error, ImportError):
        show(
            f"a library cannot be imported ({first_line(error)}). "
            "Is memory limited (ulimit -v)? If not, `fastft doctor` tells you what is missing"
        )
    else:
        show(error)
    return EXIT_BAD_INPUT


def _describe_os_error(error: OSError) -> str:
    """Return the file, if known, the reason, and what to do if the reason is a disk, a permission or a limit."""
    text = str(error.strerror or error)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{text}. Allow more of them (ulimit -n), or use fewer workers"
    if text.startswith("No usable temporary directory"):  # of `tempfile`, which also needs space there
        return f"{text}. Set TMPDIR to a folder that you can write to"
    if text.startswith("AF_UNIX path too long"):  # of `multiprocessing`, which makes its sockets there
        return f"{text} in {tempfile.gettempdir()}. Set TMPDIR to a folder with a shorter path"
    advice = ". Correct this, then run the same command again" if error.errno in _OF_THE_DISK else ""
    return (f"{_PARTIAL.sub('', str(error.filename))}: {text}" if error.filename else text) + advice


def start_command(program: str) -> bool:
    """Make stdin, stdout and stderr usable.

    Returns False, after printing one line, if the working directory was removed or memory is limited to too little.

    Characters that stdout cannot encode are printed as escape sequences. Without a working directory, oneMKL would end
    the process without giving this reason.
    """
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        Path.cwd()
    except OSError:
        print_error(program, "the working directory was removed. Change to another one")
        return False
    return has_memory(program, LEAST_MEMORY)


def has_memory(program: str, least: float) -> bool:
    """Return True if the limit on address space leaves at least so many bytes. Otherwise print one line."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or limit >= least:
        return True
    print_error(
        program,
        f"memory is limited to {format_bytes(limit)} (ulimit -v), but the command needs at least {format_bytes(least)}. "
        "Raise the limit",
    )
    return False


def _open_closed_streams() -> None:
    """Open stdin, stdout and stderr on the null device where they were closed (`>&-`).

    Otherwise a file that is opened later would take one of their numbers, and messages would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def discard_closed_output() -> bool:
    """Send stdout and stderr to the null device if their terminal or pipe was closed, or their disk is full.

    Otherwise Python would fail to flush them at exit, and end with exit code 120. Returns True if one was closed or full.
    """
    found = [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream) or _is_full(stream)]
    for stream in found:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    return bool(found)


def _is_closed(stream: TextIO) -> bool:
    """Return True if nobody reads the terminal or pipe that a stream writes to."""
    events = select.poll()
    try:
        events.register(stream, 0)
    except (OSError, TypeError, ValueError):  # the stream has no descriptor
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in events.poll(0))


def _is_full(stream: TextIO) -> bool:
    """Return True if the text that a stream still holds cannot be written."""
    try:
        stream.flush()
    except OSError:
        return True
    return False
