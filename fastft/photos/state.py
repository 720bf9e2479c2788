"""`RUN/data/prepared.json`: what the files in `RUN/data` were made from, which decides if they can be reused."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from beton_tools.base.errors import UserError
from beton_tools.base.image_formats import WHITE
from beton_tools.base.typed_json import Count, Document, check
from beton_tools.base.user_files import read_user_text
from beton_tools.read.beton_paths import SUBSET
from beton_tools.read.manifest import manifest_path
from fastft.data.warnings import IMAGES, About, Warned
from fastft.run.identity import Difference, describe
from fastft.run.json_files import write_document
from fastft.run.run_directory import lock_run
from fastft.run.said import Say

PREPARED, SPLIT = "prepared.json", "split.csv"
RUNS = ("", "*/", "runs/*/")  # where runs that use the files lie: a run, named rows of `fastft sweep`, and others
TRAINED = ("checkpoints/step-*", "result.json")  # what a run has once it has begun, and once it has ended
MAX_PREPARED_BYTES = 64 << 20  # limit for prepared.json


@dataclass(frozen=True)
class MadeFrom:
    """The inputs of a preparation. The prepared files are reused until these inputs change.

    Attributes:
        data: path to the images, for messages.
        images: hash over the images at `data`.
        val: hash over the images at `data.val`, or "".
        longest_side: limit for stored images' sides, in pixels. None if images are not converted.
        background: colour under transparent pixels.
        old: name of the run whose split is kept, or "".
        old_split: hash over that split. Empty in records from fastft 0.3.
    """

    data: str
    images: str
    val: str = ""
    longest_side: int | None = None
    background: str = WHITE
    old: str = ""
    old_split: str = ""

    def differences(self, now: "MadeFrom") -> list[Difference]:
        """List what differs in `now`, as `fastft.run.identity` does for runs."""
        options = {
            now.data: (self.images, now.images),
            "data.val": (self.val, now.val),
            "data.background": (self.background, now.background),
            "model.weights": (self.old_split, now.old_split) if self.old_split else (self.old, now.old),
            "model.image_size": (self.longest_side, now.longest_side),
        }
        return [Difference(key, f"{key} has changed") for key, (before, after) in options.items() if before != after]


class Made(Document):
    """The result of a preparation.

    Attributes:
        summary, warnings: lines that every call prints.
        about: what each warning is about. Empty in records from fastft 0.3.
        files: the files' names in the folder.
        held_out: the held-out images' positions in the .beton, if no image was converted.
    """

    summary: list[str]
    warnings: list[str]
    files: list[str] = msgspec.field(default_factory=list)
    held_out: list[Count] = msgspec.field(default_factory=list)
    about: list[About] = msgspec.field(default_factory=list)

    @classmethod
    def with_warnings(cls, warnings: Sequence[str], **others: Any) -> "Made":
        about = [warning.about if isinstance(warning, Warned) else IMAGES for warning in warnings]
        return cls(warnings=list(map(str, warnings)), about=about, **others)

    @property
    def warned(self) -> list[Warned]:
        about = self.about or [IMAGES] * len(self.warnings)
        return [Warned(text, of_text) for text, of_text in zip(self.warnings, about, strict=True)]


class Prepared(Document):
    """The content of prepared.json. made: None until the preparation has ended."""

    inputs: MadeFrom
    made: Made | None = None


def prepare_once(folder: Path, inputs: MadeFrom, say: Say, check: Callable[[], None], make: Callable[[], Made]) -> Made:
    """Prepare `inputs` in `folder`, unless a complete preparation is there already, and return the result.

    The result's summary and warnings are printed.

    Args:
        check: called before anything is written.
        make: writes the files.

    Raises:
        UserError: the inputs have changed since the first checkpoint, another process uses the run directory, or
            `check` or `make` raises it.
    """
    stored, change, lost = _compare(folder, inputs)
    made = None if change or lost or stored is None else stored.made
    if made is not None:
        say(f"{inputs.data} is unchanged, so {folder} is used")
    else:
        check()
        with lock_run(folder.parent):
            stored, change, lost = _compare(folder, inputs)  # another command may have prepared or trained meanwhile
            if stored is None or change or lost:  # an interrupted preparation with the same inputs is continued
                _begin(folder, inputs, say, stored, change, lost)
                stored = Prepared(inputs=inputs)
            made = stored.made
            if made is None:
                made = make()
                write_document(folder / PREPARED, Prepared(inputs=inputs, made=made))
    for line in (*made.summary, *made.warned):
        say(line)
    return made


def _compare(folder: Path, inputs: MadeFrom) -> tuple[Prepared | None, str, list[str]]:
    """Return (the last preparation's record, which input has changed since, which of its files are missing)."""
    stored = _read(folder)
    if stored is None:
        return None, "", []
    change = describe(stored.inputs.differences(inputs))
    if stored.made is None:
        if stored.inputs.data != inputs.data:
            change = change or "its path has changed"  # an unfinished conversion is only continued from the same path
        return stored, change, []
    return stored, change, [name for name in stored.made.files if not (folder / name).exists()]


def _begin(folder: Path, inputs: MadeFrom, say: Say, stored: Prepared | None, change: str, lost: list[str]) -> None:
    """Say why the images are prepared again, and remove what was made from other inputs."""
    if stored is not None and not change:
        say(f"{folder}: {', '.join(lost)} is missing, so {inputs.data} is prepared again")
    elif stored is not None:
        before = stored.inputs.data
        same = before == inputs.data
        if any(any(folder.parent.glob(run + found)) for run in RUNS for found in TRAINED):
            run = folder.parent
            reason = f"{change} since {run} was trained" if same else f"{run} was trained on {before}"
            raise UserError(f"{reason}. Use another --train.run_dir (fastft sweep: --out)")
        reason = f"{change} since {folder} was prepared" if same else f"{folder} was prepared from {before}"
        say(f"{reason}, so {inputs.data} is prepared{' again' if same else ''}")
    for split in ("train", "val"):
        path = folder / f"{split}.beton"
        for file in (path, manifest_path(path), folder / f"{split}{SUBSET}"):  # a .beton always has its manifest
            file.unlink(missing_ok=True)
    (folder / SPLIT).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_document(folder / PREPARED, Prepared(inputs=inputs))


def _read(folder: Path) -> Prepared | None:
    """Return the content of prepared.json, or None if the file is absent or damaged.

    Raises:
        UserError: it is not a regular file, cannot be read, or is too large.
    """
    if not os.path.lexists(folder / PREPARED):
        return None
    try:
        document = json.loads(read_user_text(folder / PREPARED, MAX_PREPARED_BYTES, "the prepared.json of a run"))
        found: Prepared = check(PREPARED, document, Prepared)
    except (ValueError, RecursionError):
        return None
    return found
