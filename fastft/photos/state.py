"""`RUN/data/prepared.json`: what the files in `RUN/data` were made of, so that they are used again or made anew."""

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from beton_tools.base.atomic import write_text
from beton_tools.base.errors import UserError
from beton_tools.base.user_files import read_user_text
from beton_tools.read.manifest import manifest_path
from beton_tools.read.subset_file import SUFFIX as SUBSET
from beton_tools.write.workers import refuse_rerun
from fastft.run.run_directory import lock_run, open_lock

PREPARED, SPLIT = "prepared.json", "split.csv"
TRAINED = ("checkpoints/step-*", "runs/*/checkpoints/step-*")  # of a run, and of the runs of `fastft tune`
MAX_BYTES = 64 << 20  # of prepared.json

Say = Callable[[str], None]


@dataclass(frozen=True)
class Inputs:
    """The inputs of a preparation; the prepared files are used again while they are equal.

    Attributes:
        data: path of the images, for messages.
        images: hash of the images at `data`.
        val: hash of the validation images if they are prepared too, otherwise a word for where they are.
        longest_side: limit of the stored images' sides in pixels; None if images are not converted.
    """

    data: str
    images: str
    val: str = ""
    longest_side: int | None = None

    def changed_since(self, stored: Mapping[str, Any]) -> str:
        """Return which input differs from those of an earlier preparation, such as "data.val has changed"; "" if none does."""
        if stored.get("images") != self.images:
            return f"{self.data} has changed"
        if stored.get("val") != self.val:
            return "data.val has changed"
        return "" if stored.get("longest_side") == self.longest_side else "model.image_size has changed"


def prepare_once(
    folder: Path, inputs: Inputs, say: Say, check: Callable[[], None], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The record of a complete preparation of `inputs` in `folder`; made if there is none. Prints its summary and warnings.

    Other processes that call this at the same time wait, and use the result.

    check: called before anything is written.
    make: writes the files; returns the record: files (names in `folder`), summary and warnings (lists of lines), and more.

    Raises:
        UserError: the inputs have changed since the first checkpoint, or a training uses the run directory; and those of `check`
            and `make`.
    """
    refuse_rerun()
    stored = _read_complete(folder, inputs)
    if stored is None:
        check()
        with _locked(folder):
            stored = _read_complete(folder, inputs)
            if stored is None:
                _begin(folder, inputs, say)
                stored = finish(folder, inputs, make())
    else:
        say(f"{inputs.data}: unchanged, using {folder}")
    for line in (*stored["summary"], *(f"warning: {text}" for text in stored["warnings"])):
        say(line)
    return stored


def finish(folder: Path, inputs: Inputs, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write and return the record of a complete preparation."""
    complete = {"inputs": asdict(inputs), "complete": True, **record}
    write_text(folder / PREPARED, json.dumps(complete, indent=1))
    return complete


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open_lock(folder) as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _begin(folder: Path, inputs: Inputs, say: Say) -> None:
    """Remove files of other inputs; keep what an interrupted preparation of the same inputs has made."""
    stored = _read(folder)
    change = inputs.changed_since(stored.get("inputs", {}))
    if stored and not change and not stored.get("complete"):
        return
    with lock_run(folder.parent):
        if stored and not change:
            say(f"{folder}: {', '.join(_lost(folder, stored))} is missing: preparing {inputs.data} again")
        elif stored:
            before = stored["inputs"].get("data")
            is_other = before != inputs.data
            _refuse_changed(folder.parent, change, before if is_other else "")
            reason = f"{folder} is of {before}" if is_other else f"{change} since {folder} was prepared"
            say(f"{reason}: preparing {inputs.data}{'' if is_other else ' again'}")
        _discard(folder)
        write_text(folder / PREPARED, json.dumps({"inputs": asdict(inputs)}))


def _read_complete(folder: Path, inputs: Inputs) -> dict[str, Any] | None:
    stored = _read(folder)
    is_same = stored.get("complete") and not inputs.changed_since(stored["inputs"])
    return stored if is_same and not _lost(folder, stored) else None


def _lost(folder: Path, stored: Mapping[str, Any]) -> list[str]:
    return [name for name in stored.get("files", ()) if not (folder / name).exists()]


def _read(folder: Path) -> dict[str, Any]:
    """The content of prepared.json; empty if there is none, or it is damaged."""
    if not (folder / PREPARED).exists():
        return {}
    try:
        found = json.loads(read_user_text(folder / PREPARED, MAX_BYTES, "the prepared.json of a run"))
        lines = [
            text
            for key in ("files", "summary", "warnings", "compared", "shared")
            for text in found.get(key, [])
        ]
        return (
            found
            if isinstance(found["inputs"], dict) and all(isinstance(text, str) for text in lines)
            else {}
        )
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return {}


def _discard(folder: Path) -> None:
    """Remove the files of an earlier preparation."""
    for split in ("train", "val"):
        path = folder / f"{split}.beton"
        path.unlink(missing_ok=True)  # before its manifest: a .beton always has one
        manifest_path(path).unlink(missing_ok=True)
        (folder / f"{split}{SUBSET}").unlink(missing_ok=True)
    (folder / SPLIT).unlink(missing_ok=True)


def _refuse_changed(run: Path, change: str, before: str) -> None:
    """before: what the run directory was made of, if that is something else."""
    if any(any(run.glob(folder)) for folder in TRAINED):
        reason = f"{run} was trained on {before}" if before else f"{change} since {run} was trained"
        raise UserError(f"{reason}; use another --train.run_dir (fastft tune and sweep: --out)")
