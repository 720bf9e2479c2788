"""Convert photographs once into a run directory, and use them again while they are unchanged.

`RUN/data/` holds `train.beton`, `val.beton`, `split.csv` (file, class, split) and `prepared.json` (what they were made of).
"""

import csv
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from beton_tools import torchrun
from beton_tools.beton_paths import find_betons
from beton_tools.beton_set import BetonSet
from beton_tools.console import printable
from beton_tools.errors import UserError
from beton_tools.manifest import Manifest, manifest_path
from beton_tools.pagefile import try_lock
from beton_tools.progress_bar import progress
from beton_tools.signals import hint_when_interrupted
from beton_tools.user_files import read_user_text
from beton_tools.writer import WriteOptions, write_beton
from fastft.build import with_num_classes, with_train_size
from fastft.config import Recipe
from fastft.files.atomic import write_text
from fastft.files.run_directory import lock_run, run_folder
from fastft.photos.layout import LabelledSet, open_sets
from fastft.photos.paths import needs_conversion
from fastft.photos.photo_plan import LISTED, Plan, list_photos, plan_photos, with_classes

VERSION = 1  # of the rules that split and order the images
PREPARED, SPLIT = "prepared.json", "split.csv"
LEAST_LONG_SIDE = 500  # pixels; ImageNet's usual size
PER_IMAGE_SIZE = 2  # a random crop of half the area still has more pixels than the model sees
POLL_SECONDS = 0.2
MAX_BYTES = 64 << 20  # of prepared.json

Say = Callable[[str], None]


def line_printer(console: Console) -> Say:
    """Prints lines in the process of rank 0 of a training."""
    if torchrun.rank() != 0:
        return lambda text: None
    return partial(console.print, highlight=False, markup=False, soft_wrap=True)


def count_photos(recipe: Recipe) -> Recipe:
    """The recipe for its photographs, which are listed and split but not converted.

    Raises:
        UserError: as `plan_photos`.
    """
    assert recipe.data.train is not None
    plan = plan_photos(*_listed(recipe), holds_out=recipe.data.val is None)
    recipe = with_num_classes(recipe, len(plan.train.source.classes), recipe.data.train)
    return with_train_size(recipe, len(plan.train))


def prepare_data(recipe: Recipe, say: Say, run: Path | None = None) -> Recipe:
    """The recipe with .beton files as `data.train` and `data.val`; photographs are converted into its run directory.

    Every process of a training may call this at the same time: one converts, the others wait.

    run: another folder for the conversion, for several runs on the same images.

    Raises:
        UserError: no such file, or as `plan_photos` and `write_beton`; the photographs have changed since the run's first
            checkpoint; `data.num_classes` on the command line contradicts them.
    """
    for path in (recipe.data.train, recipe.data.val):
        if path is not None and not needs_conversion(path):
            _check_beton(path)  # before weights are fetched
    if recipe.data.train is None or not any(map(needs_conversion, (recipe.data.train, recipe.data.val))):
        return recipe
    folder = (run or run_folder(recipe)) / "data"
    folder.mkdir(parents=True, exist_ok=True)
    with _wait_for_lock(folder / ".lock"):
        return (_prepare_train if needs_conversion(recipe.data.train) else _prepare_val)(recipe, folder, say)


def prepare_overrides(recipe: Recipe, overrides: Sequence[str], run: Path, say: Say) -> list[str]:
    """A command line whose `data.train` and `data.val` are .beton files, converted into `run` if they are photographs.

    recipe: one that the command line was applied to.

    Raises:
        UserError: as `prepare_data`.
    """
    if not (needs_conversion(recipe.data.train) or needs_conversion(recipe.data.val)):
        return list(overrides)
    data = prepare_data(recipe, say, run).data
    return [
        *overrides,
        *(f"--data.{key}={path}" for key, path in (("train", data.train), ("val", data.val)) if path),
    ]


def _check_beton(path: str) -> None:
    for file in find_betons(path):
        if not os.path.lexists(file):
            raise UserError(
                f"{file}: no such file or folder; give a folder with a folder per class, a CSV or parquet table, or a .beton"
            )
    BetonSet.open(path)


def _prepare_train(recipe: Recipe, folder: Path, say: Say) -> Recipe:
    """Convert `data.train` and, unless it is a .beton, `data.val`."""
    photos, listed = str(recipe.data.train), _listed(recipe)
    inputs = _fingerprint(listed, _options(recipe))
    stored = _begin(folder, photos, inputs, say)
    if not stored.get("complete"):
        stored = _convert_all(recipe, listed, inputs, folder)
    for line in (*stored["summary"], *(f"warning: {text}" for text in stored["warnings"])):
        say(line)
    recipe = with_num_classes(recipe, int(stored["classes"]), photos)
    if stored["val"]:
        recipe = recipe.with_option("data.val", str(folder / "val.beton"))
    return recipe.with_option("data.train", str(folder / "train.beton"))


def _prepare_val(recipe: Recipe, folder: Path, say: Say) -> Recipe:
    """Convert only `data.val`, with the classes of the training file."""
    photos, manifest = str(recipe.data.val), Manifest.of_beton(find_betons(str(recipe.data.train))[0])
    if manifest is None:
        raise UserError(
            f"{recipe.data.train}: has no class names for {photos}; give both as photographs or as .beton"
        )
    first, second = open_sets(photos)
    val = with_classes(second or first, manifest.classes)
    inputs = _fingerprint((None, val), _options(recipe))
    if not _begin(folder, photos, inputs, say).get("complete"):
        for text in _write("val", val, _options(recipe), folder):
            say(f"warning: {text}")
        write_text(folder / PREPARED, json.dumps({"inputs": inputs, "photos": photos, "complete": True}))
    return recipe.with_option("data.val", str(folder / "val.beton"))


def _begin(folder: Path, photos: str, inputs: str, say: Say) -> dict[str, Any]:
    """The record of an earlier conversion of the same inputs, complete or not; a conversion of other inputs is removed.

    Raises:
        UserError: the photographs have changed since the first checkpoint, or another process uses the run directory.
    """
    stored = _read_prepared(folder / PREPARED)
    if stored.get("inputs") == inputs:
        if stored.get("complete"):
            say(f"{photos}: unchanged, using its conversion in {folder}")
        return stored
    with lock_run(folder.parent):
        if stored:
            _refuse_changed(folder.parent, photos)
            say(f"{photos} has changed since it was converted: converting it again")
        _discard(folder)
        write_text(folder / PREPARED, json.dumps({"inputs": inputs, "photos": photos}))
    return {}


def _convert_all(
    recipe: Recipe, listed: tuple[LabelledSet, LabelledSet | None], inputs: str, folder: Path
) -> dict[str, Any]:
    """Split, convert and record; what an interrupted call converted is kept."""
    plan = plan_photos(*listed, holds_out=recipe.data.val is None)
    with_num_classes(recipe, len(plan.train.source.classes), recipe.data.train)  # refuses before it converts
    write_text(folder / SPLIT, _split_table(plan))
    warnings = plan.warnings + _write("train", plan.train, _options(recipe), folder)
    if plan.val is not None:
        warnings += _write("val", plan.val, _options(recipe), folder)
    prepared = {
        "inputs": inputs,
        "photos": str(recipe.data.train),
        "complete": True,
        "classes": len(plan.train.source.classes),
        "val": plan.val is not None,
        "summary": [_summary(recipe, plan, folder)],
        "warnings": warnings,
    }
    write_text(folder / PREPARED, json.dumps(prepared, indent=1))
    return prepared


def _listed(recipe: Recipe) -> tuple[LabelledSet, LabelledSet | None]:
    val = recipe.data.val if needs_conversion(recipe.data.val) else None
    train, own_val = list_photos(str(recipe.data.train), val)
    return train, own_val if val or recipe.data.val is None else None


def _options(recipe: Recipe) -> WriteOptions:
    longest = max(LEAST_LONG_SIDE, PER_IMAGE_SIZE * recipe.model.image_size)
    return WriteOptions(max_resolution=longest, on_error="skip")


def _summary(recipe: Recipe, plan: Plan, folder: Path) -> str:
    source = f"{recipe.data.train}: {len(plan.train):,} training images of {len(plan.train.source.classes)} classes"
    if plan.val is None:
        return source
    how = f", held out by class ({folder / SPLIT})" if plan.held_out else ""
    return f"{source}, {len(plan.val):,} validation images{how}"


def _write(split: str, images: LabelledSet, options: WriteOptions, folder: Path) -> list[str]:
    """Write `folder/<split>.beton`, or continue it; returns a warning if images cannot be read."""
    with progress(f"converting {split}") as show, hint_when_interrupted():
        manifest = write_beton(folder / f"{split}.beton", images.source, options, show)
    if not manifest.skipped:
        return []
    listed = ", ".join(f"{printable(name)} ({reason})" for name, reason in manifest.skipped[:LISTED])
    rest = f", ... {len(manifest.skipped) - LISTED:,} more" if len(manifest.skipped) > LISTED else ""
    return [f"{len(manifest.skipped):,} {split} images cannot be read and are left out: {listed}{rest}"]


def _split_table(plan: Plan) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "class", "split"])
    writer.writerows(plan.rows())
    return text.getvalue()


# state ------------------------------------------------------------------------------------------------------------------


def _fingerprint(listed: tuple[LabelledSet | None, LabelledSet | None], options: WriteOptions) -> str:
    """Changes with the names, labels, groups, sizes and times of the images; not with the place of their folder."""
    digest = hashlib.blake2b(json.dumps([VERSION, options.recorded()]).encode(), digest_size=16)
    for found in listed:
        if found is None:
            digest.update(b"none")
            continue
        source, columns = found.source, found.columns
        stamps = source.stamps(np.arange(len(found), dtype=np.int64))
        described = [source.kind, source.classes, columns.groups, stamps.tolist(), source.labels.tolist()]
        digest.update(json.dumps(described).encode())
        digest.update(source.names.offsets.tobytes() + source.names.blob)
    return digest.hexdigest()


def _read_prepared(path: Path) -> dict[str, Any]:
    """The content of prepared.json; empty if there is none, or it is damaged."""
    if not path.exists():
        return {}
    try:
        found = json.loads(read_user_text(path, MAX_BYTES, "the prepared.json of a run"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _discard(folder: Path) -> None:
    """Remove the files of an earlier conversion."""
    for split in ("train", "val"):
        path = folder / f"{split}.beton"
        path.unlink(missing_ok=True)  # before its manifest: a .beton always has one
        manifest_path(path).unlink(missing_ok=True)
    (folder / SPLIT).unlink(missing_ok=True)


def _refuse_changed(run: Path, photos: str) -> None:
    if any((run / "checkpoints").glob("step-*")):
        raise UserError(f"{photos} has changed since {run} was trained on it; use another --train.run_dir")


@contextmanager
def _wait_for_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file; it is released if the process ends."""
    with path.open("w") as file:
        while not try_lock(file):
            time.sleep(POLL_SECONDS)
        yield
