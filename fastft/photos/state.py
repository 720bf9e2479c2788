"""`RUN/data/prepared.json`: what the files in `RUN/data` were made of, so that they are used again or made anew."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from beton_tools.atomic import write_text
from beton_tools.errors import UserError
from beton_tools.manifest import manifest_path
from beton_tools.pagefile import try_lock
from beton_tools.subset_file import SUFFIX as SUBSET
from beton_tools.user_files import read_user_text
from fastft.files.run_directory import lock_run

PREPARED, SPLIT = "prepared.json", "split.csv"
TRAINED = ("checkpoints/step-*", "runs/*/checkpoints/step-*")  # of a run, and of the runs of `fastft tune`
POLL_SECONDS = 0.2
MAX_BYTES = 64 << 20  # of prepared.json

Say = Callable[[str], None]


def begin(folder: Path, data: str, inputs: str, say: Say, older: str = "") -> dict[str, Any]:
    """The record of an earlier preparation of the same inputs, complete or not; files of other inputs are removed.

    data: `data.train` or `data.val`, for messages. inputs: a hash of the images and of how they are prepared.
    older: what a record without `files` has for these inputs; it does not tell a hold-out from a `data.val` elsewhere.

    Raises:
        UserError: the images have changed since the first checkpoint, or another process uses the run directory.
    """
    stored = _read(folder / PREPARED)
    if stored.get("inputs") == older and not stored.get("val") and "files" not in stored:
        stored["inputs"] = inputs
    lost = [name for name in stored.get("files", ()) if not (folder / name).exists()]
    if stored.get("inputs") == inputs and not lost:
        if stored.get("complete"):
            say(f"{data}: unchanged, using {folder}")
        return stored
    with lock_run(folder.parent):
        if stored.get("inputs") == inputs:
            say(f"{folder}: {', '.join(lost)} is missing: preparing {data} again")
        elif stored:
            before = str(stored.get("photos", data))
            _refuse_changed(folder.parent, data, before)
            changed = (
                f"{data} has changed since it was prepared" if before == data else f"{folder} is of {before}"
            )
            say(f"{changed}: preparing {data}{' again' * (before == data)}")
        _discard(folder)
        write_text(folder / PREPARED, json.dumps({"inputs": inputs, "photos": data}))
    return {}


def finish(folder: Path, data: str, inputs: str, record: dict[str, Any]) -> dict[str, Any]:
    """Write and return the record of a complete preparation; data, inputs: as in `begin`."""
    complete = {"inputs": inputs, "photos": data, "complete": True, **record}
    write_text(folder / PREPARED, json.dumps(complete, indent=1))
    return complete


@contextmanager
def wait_for_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, made if there is none; it is released if the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        while not try_lock(file):
            time.sleep(POLL_SECONDS)
        yield


def _read(path: Path) -> dict[str, Any]:
    """The content of prepared.json; empty if there is none, or it is damaged."""
    if not path.exists():
        return {}
    try:
        found = json.loads(read_user_text(path, MAX_BYTES, "the prepared.json of a run"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _discard(folder: Path) -> None:
    """Remove the files of an earlier preparation."""
    for split in ("train", "val"):
        path = folder / f"{split}.beton"
        path.unlink(missing_ok=True)  # before its manifest: a .beton always has one
        manifest_path(path).unlink(missing_ok=True)
        (folder / f"{split}{SUBSET}").unlink(missing_ok=True)
    (folder / SPLIT).unlink(missing_ok=True)


def _refuse_changed(run: Path, data: str, before: str) -> None:
    if any(any(run.glob(folder)) for folder in TRAINED):
        changed = (
            f"{data} has changed since {run} was trained on it"
            if before == data
            else f"{run} was trained on {before}"
        )
        raise UserError(f"{changed}; use another --train.run_dir")
