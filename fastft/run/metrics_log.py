"""The log of a run: one fixed-column line per interval on the console, `metrics.jsonl`, and the tracker.

`fastft.train.reporting` gives the fields of a line.
"""

import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from beton_tools.base.atomic import write_text
from beton_tools.base.console import format_duration, hide_secrets
from beton_tools.base.errors import CORRECT, UserError, report_disk_errors
from beton_tools.base.typed_json import check
from beton_tools.base.user_files import open_own
from fastft.run.metrics_lines import LOG, Interval, Line, RawLine, read_lines
from fastft.run.said import keeping, line_printer
from fastft.run.tracking import Tracker

HEADER = f"{'epoch':>6} {'step':>15} {'loss':>8} {'lr':>9} {'img/s':>8} {'wait':>6}{{mfu}} {'memory':>8} {'left':>12}"
LINES_PER_HEADER = 20


def format_interval(i: Interval, total_steps: int, on_gpu: bool) -> str:
    """Return the console's line. It shows MFU for GPUs only, because a CPU's peak is not known."""
    mfu = f" {'-' if i.mfu is None else format(i.mfu, '.1%'):>6}" if on_gpu else ""
    return (
        f"{i.epoch:>6} {f'{i.step:.0f}/{total_steps}':>15} {i.loss:>8.4f} {i.lr:>9.2e} {i.images_per_second:>8.1f} "
        f"{i.wait_share:>6.1%}{mfu} {i.memory_gib:>7.2f}G {format_duration(i.seconds_left):>12}"
    )


class RunLog:
    """Writes in the main process. In the others every call does nothing.

    On resume, lines after `resumed_step` are dropped, because those steps will be logged again.
    """

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        resumed_step: int,
        enabled: bool,
        console: Console,
        tracker: Tracker | None = None,
        on_gpu: bool = False,
    ):
        self.enabled, self.total_steps, self.console, self.tracker = enabled, total_steps, console, tracker
        self._on_gpu = on_gpu
        self._lines = 0
        if not enabled:
            return
        self._say = keeping(line_printer(console), folder, "train")
        self._writing = partial(report_disk_errors, f"the log in {folder}", CORRECT)
        path = folder / LOG
        with self._writing():
            _drop_after(path, resumed_step)
            self._file = os.fdopen(open_own(path, os.O_WRONLY | os.O_APPEND), "a", encoding="utf-8")
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), console=console, disable=not console.is_terminal, transient=True,
        )  # fmt: skip
        self._task = self._progress.add_task("training", total=total_steps, completed=resumed_step)
        self._progress.start()

    def info(self, text: str) -> None:
        if self.enabled:
            self._say(text)

    def advance(self) -> None:
        if self.enabled:
            self._progress.advance(self._task)

    def interval(self, interval: Interval) -> None:
        if self._lines % LINES_PER_HEADER == 0:
            self.info(HEADER.format(mfu=f" {'mfu':>6}" if self._on_gpu else ""))
        self._lines += 1
        self.info(format_interval(interval, self.total_steps, self._on_gpu))
        self.record("train", int(interval.step), msgspec.to_builtins(interval))

    def record(self, kind: str, step: int, values: RawLine) -> None:
        """Append a line to metrics.jsonl, and send its numbers to the tracker.

        Raises:
            UserError: the disk is full or fails.
        """
        if not self.enabled:
            return
        line = {"kind": kind, "time": time.time(), **values, "step": step}
        with self._writing():
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if scalars := _scalars(kind, values):
            self._track(lambda tracker: tracker.log(scalars, step))

    def close(self, failed: bool = False) -> None:
        """Close all files. After a failure a full disk is not reported again."""
        if self.enabled:
            self._progress.stop()
            with suppress(UserError) if failed else nullcontext(), self._writing():
                self._file.close()
        self._track(lambda tracker: tracker.close(failed))

    def _track(self, call: Callable[[Tracker], None]) -> None:
        """Call the tracker. If it fails, for example because its server does, training goes on without it."""
        if self.tracker is None:
            return
        try:
            call(self.tracker)
        except Exception as error:
            self.info(f"logging to the tracker stops: {hide_secrets(' '.join(str(error).split()))}")
            self.tracker = None


def _scalars(kind: str, values: RawLine) -> dict[str, float]:
    """Return the numbers by name: train/loss, train/split/forward, ..."""
    scalars = {
        f"{kind}/{k}": v for k, v in values.items() if isinstance(v, (int, float)) and k not in ("epoch", "step")
    }
    for key, inner in values.items():
        if isinstance(inner, dict):
            scalars |= {f"{kind}/{key}/{part}": number for part, number in inner.items()}
    return scalars


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [line for line in read_lines(path) if check("it", line, Line).step <= step] if step else []
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
