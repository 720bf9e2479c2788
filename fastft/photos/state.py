"""`RUN/data/prepared.json`: what the files in `RUN/data` were made of, so that they are used again or made anew."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from beton_tools.base.atomic import write_text
from beton_tools.base.errors import UserError
from beton_tools.base.user_files import read_user_text, try_lock, was_replaced
from beton_tools.read.manifest import manifest_path
from beton_tools.read.subset_file import SUFFIX as SUBSET
from beton_tools.write.workers import refuse_rerun
from fastft.run.run_directory import LOCK, lock_run, open_lock

PREPARED, SPLIT = "prepared.json", "split.csv"
TRAINED = ("checkpoints/step-*", "runs/*/checkpoints/step-*")  # of a run, and of the runs of `fastft tune`
POLL_SECONDS, SILENT_SECONDS = 0.2, 2.0  # of waiting for another process
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


def begin(folder: Path, inputs: Inputs, say: Say, check: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The record of an earlier preparation of the same inputs, complete or not; files of other inputs are removed.

    check: called before anything is removed or prepared; what it raises is raised.

    Raises:
        UserError: the inputs have changed since the first checkpoint, or another process uses the run directory.
    """
    stored = _read(folder / PREPARED)
    before = stored.get("inputs", {})
    change = inputs.changed_since(before)
    lost = [name for name in stored.get("files", ()) if not (folder / name).exists()]
    if stored and not change and not lost:
        if stored.get("complete"):
            say(f"{inputs.data}: unchanged, using {folder}")
        else:
            check()
        return stored
    check()
    with lock_run(folder.parent):
        if stored and not change:
            say(f"{folder}: {', '.join(lost)} is missing: preparing {inputs.data} again")
        elif stored:
            is_other = before["data"] != inputs.data
            _refuse_changed(folder.parent, change, before["data"] if is_other else "")
            reason = (
                f"{folder} is of {before['data']}" if is_other else f"{change} since {folder} was prepared"
            )
            say(f"{reason}: preparing {inputs.data}{'' if is_other else ' again'}")
        _discard(folder)
        write_text(folder / PREPARED, json.dumps({"inputs": asdict(inputs)}))
    return {}


def finish(folder: Path, inputs: Inputs, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write and return the record of a complete preparation.

    record: files (names in `folder`), summary and warnings (lists of lines), and what the caller needs besides, such as what was
    `compared` to find `shared` images.
    """
    complete = {"inputs": asdict(inputs), "complete": True, **record}
    write_text(folder / PREPARED, json.dumps(complete, indent=1))
    return complete


def print_record(record: Mapping[str, Any], say: Say) -> None:
    """Print the summary and the warnings of a record."""
    for line in (*record["summary"], *(f"warning: {text}" for text in record["warnings"])):
        say(line)


@contextmanager
def locked(folder: Path, say: Say) -> Iterator[None]:
    """Hold the lock of a folder, made if there is none; it is released if the process ends.

    After an error a folder in which nothing was prepared is removed.

    Raises:
        RuntimeError: as `refuse_rerun`; the parent process holds the lock, so that waiting would never end.
    """
    refuse_rerun()
    waited = 0.0
    while True:
        above = [path for path in folder.parent.parents if not path.exists()]
        file = _open_in(folder)
        with file:
            while not try_lock(file):
                if waited <= SILENT_SECONDS < waited + POLL_SECONDS:
                    say(f"{folder}: waiting for another process that prepares the images")
                time.sleep(POLL_SECONDS)
                waited += POLL_SECONDS
            if was_replaced(file, folder / LOCK):
                continue  # the other process has removed the folder, after an error
            try:
                yield
            except UserError:
                _remove_unused(folder, above)
                raise
            return


def _open_in(folder: Path) -> IO[str]:
    """The lock file of a folder; both are made if there is none."""
    while True:
        with suppress(FileNotFoundError):  # another process has just removed the folder, or one above
            folder.mkdir(parents=True, exist_ok=True)
            return open_lock(folder)


def _remove_unused(folder: Path, above: Sequence[Path]) -> None:
    """Remove a folder that holds no images yet, the run directory if nothing else is in it, and the empty ones of `above`."""
    # the lock last: without it, another process makes its own files here
    for place, own in (
        (folder, [PREPARED, LOCK]),
        (folder.parent, [LOCK]),
        *((place, []) for place in above),
    ):
        if not _remove_if_only(place, own):
            return


def _remove_if_only(folder: Path, own: Sequence[str]) -> bool:
    """Remove a folder with the files `own`; False if it is gone, or something else is in it, perhaps made just now."""
    try:
        if {path.name for path in folder.iterdir()} - set(own):
            return False
        for name in own:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
    except OSError:
        return False
    return True


def _read(path: Path) -> dict[str, Any]:
    """The content of prepared.json; empty if there is none, or it is damaged or of another version."""
    if not path.exists():
        return {}
    try:
        found = json.loads(read_user_text(path, MAX_BYTES, "the prepared.json of a run"))
    except (ValueError, RecursionError):
        return {}
    return found if _is_record(found) else {}


def _is_record(found: Any) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get("inputs"), dict):
        return False
    if not isinstance(found["inputs"].get("data"), str):
        return False
    lines = [found.get(key, []) for key in ("files", "summary", "warnings", "compared", "shared")]
    return all(isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in lines)


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
