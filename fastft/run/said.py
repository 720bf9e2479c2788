"""The lines that a run prints. Its warnings are also kept, in `warnings.json` in the run directory.

A warning is a `fastft.data.warnings.Warned`. It is kept when it is printed, so that `result.json`, the log's end and the report
have every warning from the log. The report shows a warning beside the figures that it is about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from beton_tools.base import torchrun
from beton_tools.base.console import silent
from beton_tools.base.typed_json import Document
from fastft.data.warnings import About, Warned
from fastft.run.json_files import read_document, write_document

if TYPE_CHECKING:
    from rich.console import Console

WARNINGS = "warnings.json"
Say = Callable[[str], None]
Stage = Literal["files", "choose", "head", "train"]
# These stages are skipped if their result is there. All other stages print their warnings at every start.
SKIPPED: tuple[Stage, ...] = ("choose", "head")


class SaidWarning(Document):
    """A warning that one of the run's stages printed."""

    text: str
    about: About
    stage: Stage


class _Kept(Document):
    request: str = ""  # `fastft.run.inputs.Inputs.request`
    warnings: list[SaidWarning] = msgspec.field(default_factory=list)


def line_printer(console: Console) -> Say:
    """Return a function that prints lines in the run's rank 0 process. For a quiet console it is `silent`."""
    if console.quiet or torchrun.rank() != 0:
        return silent

    def say(line: str) -> None:
        text = f"warning: {line}" if isinstance(line, Warned) else line
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    return say


def collecting(say: Say, warned: list[Warned]) -> Say:
    """Return `say`, which also adds the warnings that it says to `warned`."""

    def collect(line: str) -> None:
        if isinstance(line, Warned) and line not in warned:
            warned.append(line)
        say(line)

    return collect


def begin_warnings(folder: Path, request: str, has_begun: bool, said: Sequence[Warned]) -> None:
    """Begin the file when a run is started or started again.

    It keeps warnings from stages that are skipped now: after the first checkpoint, or if the request is the same.

    Args:
        has_begun: the run has a checkpoint.
        said: the first stage's warnings, which were printed before the run directory was locked.
    """
    stored = _read(folder)
    same = has_begun or stored.request == request
    kept = [warning for warning in stored.warnings if same and warning.stage in SKIPPED]
    made = _Kept(request=request, warnings=kept)
    if made.warnings or said or stored.warnings:
        write_document(folder / WARNINGS, made)
    for line in said:
        _add(folder, line, "files", request)


def keeping(say: Say, folder: Path, stage: Stage, request: str = "") -> Say:
    """Return `say`, which also keeps the warnings that it says."""

    def keep(line: str) -> None:
        if isinstance(line, Warned):
            _add(folder, line, stage, request)
        say(line)

    return keep


def read_warnings(folder: Path) -> list[SaidWarning]:
    """Return the run's warnings in the order in which they were printed. Raises UserError if the file cannot be read."""
    return _read(folder).warnings


def _read(folder: Path) -> _Kept:
    return read_document(folder / WARNINGS, _Kept, "delete it and run the same command again") or _Kept()


def _add(folder: Path, line: Warned, stage: Stage, request: str) -> None:
    stored = _read(folder)
    if any(warning.text == line for warning in stored.warnings):
        return
    made = [*stored.warnings, SaidWarning(text=str(line), about=line.about, stage=stage)]
    write_document(folder / WARNINGS, _Kept(request=stored.request or request, warnings=made))
