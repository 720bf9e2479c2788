"""`RUN/data/prepared.json`: what the files in `RUN/data` were made from, so that they are used again or made anew."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from beton_tools.base.atomic import write_text
from beton_tools.base.errors import UserError
from beton_tools.base.image_formats import WHITE
from beton_tools.base.user_files import read_user_text
from beton_tools.read.beton_paths import SUBSET
from beton_tools.read.manifest import manifest_path
from fastft.run.run_directory import lock_run

PREPARED, SPLIT = "prepared.json", "split.csv"
TRAINED = ("checkpoints/step-*", "runs/*/checkpoints/step-*")  # in a run, and in the runs of `fastft sweep`
MAX_BYTES = 64 << 20  # limit for prepared.json

Say = Callable[[str], None]


@dataclass(frozen=True)
class Inputs:
    """The inputs of a preparation. The prepared files are used again while the inputs stay equal.

    Attributes:
        data: path of the images, for messages.
        images: hash of the images at `data`.
        val: hash of the images at `data.val`, or "".
        longest_side: limit for the sides of stored images, in pixels. None if images are not converted.
        background: colour under transparent pixels.
        old: name of the run whose split is kept, or "".
    """

    data: str
    images: str
    val: str = ""
    longest_side: int | None = None
    background: str = WHITE
    old: str = ""

    def changed_since(self, stored: Mapping[str, Any]) -> str:
        """Return which input differs from an earlier preparation, such as "data.val has changed", or "" if none does."""
        if stored.get("images") != self.images:
            return f"{self.data} has changed"
        if stored.get("val") != self.val:
            return "data.val has changed"
        if stored.get("background", WHITE) != self.background:
            return "data.background has changed"
        if stored.get("old", "") != self.old:
            return "model.weights has changed"
        return "" if stored.get("longest_side") == self.longest_side else "model.image_size has changed"


def prepare_once(
    folder: Path, inputs: Inputs, say: Say, check: Callable[[], None], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return the record of a complete preparation of `inputs` in `folder`, which is made if there is none.

    Its summary and warnings are printed.

    Args:
        check: called before anything is written.
        make: writes the files and returns the record: files (names in `folder`), summary and warnings (lists of lines),
            and more.

    Raises:
        UserError: the inputs have changed since the first checkpoint, another process uses the run directory, or
            `check` or `make` raises it.
    """
    stored, change, lost = _compare(folder, inputs)
    if stored.get("complete") and not change and not lost:
        say(f"{inputs.data}: unchanged, using {folder}")
    else:
        check()
        with lock_run(folder.parent):
            stored, change, lost = _compare(folder, inputs)  # another command may have prepared or trained meanwhile
            if not stored.get("complete") or change or lost:
                if not stored or change or lost:  # an interrupted preparation with the same inputs is continued
                    _begin(folder, inputs, say, stored, change, lost)
                stored = _finish(folder, inputs, make())
    for line in (*stored["summary"], *(f"warning: {text}" for text in stored["warnings"])):
        say(line)
    return stored


def _compare(folder: Path, inputs: Inputs) -> tuple[dict[str, Any], str, list[str]]:
    """Return (the last preparation's record, which input has changed since, which of its files are missing)."""
    stored = _read(folder)
    before = stored.get("inputs", {})
    change = inputs.changed_since(before)
    if stored and not stored.get("complete") and before.get("data") != inputs.data:
        change = change or "its path has changed"  # an unfinished conversion is only continued from the same path
    lost = [name for name in stored.get("files", ()) if not (folder / name).exists()]
    return stored, change, lost


def _finish(folder: Path, inputs: Inputs, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write and return the record of a complete preparation."""
    complete = {"inputs": asdict(inputs), "complete": True, **record}
    write_text(folder / PREPARED, json.dumps(complete, indent=1))
    return complete


def _begin(folder: Path, inputs: Inputs, say: Say, stored: Mapping[str, Any], change: str, lost: list[str]) -> None:
    """Say why the images are prepared again, and remove what was made from other inputs."""
    if stored and not change:
        say(f"{folder}: {', '.join(lost)} is missing: preparing {inputs.data} again")
    elif stored:
        before = stored["inputs"].get("data")
        same = before == inputs.data
        if any(any(folder.parent.glob(pattern)) for pattern in TRAINED):
            run = folder.parent
            reason = f"{change} since {run} was trained" if same else f"{run} was trained on {before}"
            raise UserError(f"{reason}; use another --train.run_dir (fastft sweep: --out)")
        reason = f"{change} since {folder} was prepared" if same else f"{folder} is of {before}"
        say(f"{reason}: preparing {inputs.data}{' again' if same else ''}")
    for split in ("train", "val"):
        path = folder / f"{split}.beton"
        for file in (path, manifest_path(path), folder / f"{split}{SUBSET}"):  # a .beton always has its manifest
            file.unlink(missing_ok=True)
    (folder / SPLIT).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / PREPARED, json.dumps({"inputs": asdict(inputs)}))


def _read(folder: Path) -> dict[str, Any]:
    """Return the content of prepared.json. Empty if there is none, or if it is damaged.

    Raises:
        UserError: it is no regular file, not readable, or too large.
    """
    if not os.path.lexists(folder / PREPARED):
        return {}
    try:
        found = json.loads(read_user_text(folder / PREPARED, MAX_BYTES, "the prepared.json of a run"))
        lists = [found.get(key, []) for key in ("files", "summary", "warnings")]
        texts = [text for values in lists for text in values]
        return found if isinstance(found["inputs"], dict) and all(isinstance(t, str) for t in texts) else {}
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return {}
