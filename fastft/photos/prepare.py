"""Convert photographs once into a run directory, and use them again while they are unchanged.

`RUN/data/` holds `train.beton`, `val.beton`, `split.csv` (file, class, split) and `prepared.json` (what they were made of). For
a .beton of which images are held out, see `fastft.photos.beton_holdout`.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from beton_tools import torchrun
from beton_tools.atomic import write_text
from beton_tools.beton_paths import find_betons
from beton_tools.beton_set import BetonSet
from beton_tools.console import printable
from beton_tools.errors import UserError
from beton_tools.manifest import Manifest
from beton_tools.progress_bar import progress
from beton_tools.signals import hint_when_interrupted
from beton_tools.writer import WriteOptions, write_beton
from fastft.build import with_num_classes, with_train_size
from fastft.config import Recipe
from fastft.files.run_directory import run_folder
from fastft.photos.beton_holdout import prepare_holdout
from fastft.photos.holdout import VERSION
from fastft.photos.layout import LabelledSet, open_val
from fastft.photos.paths import holds_out_of_beton, needs_conversion, needs_preparation
from fastft.photos.photo_plan import (
    LISTED,
    Plan,
    describe_sides,
    list_photos,
    plan_photos,
    split_table,
    with_classes,
)
from fastft.photos.state import SPLIT, Say, begin, finish, wait_for_lock

LEAST_LONG_SIDE = 500  # pixels; ImageNet's usual size
PER_IMAGE_SIZE = 2  # a random crop of half the area still has more pixels than the model sees


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
    """The recipe with .beton files, or subsets of one, as `data.train` and `data.val`.

    Photographs are converted into the run directory. Every process of a training may call this at the same time: one converts,
    the others wait.

    run: another folder for the conversion, for several runs on the same images.

    Raises:
        UserError: no such file, or as `plan_photos`, `prepare_holdout` and `write_beton`; the images have changed since the
            run's first checkpoint; `data.num_classes` on the command line contradicts them.
    """
    for path in (recipe.data.train, recipe.data.val):
        if path is not None and not needs_conversion(path):
            _check_beton(path)  # before weights are fetched
    if not needs_preparation(recipe):
        return recipe
    folder = (run or run_folder(recipe)) / "data"
    with wait_for_lock(folder):
        if holds_out_of_beton(recipe):
            return prepare_holdout(recipe, folder, say)
        return (_prepare_train if needs_conversion(recipe.data.train) else _prepare_val)(recipe, folder, say)


def prepare_overrides(recipe: Recipe, overrides: Sequence[str], run: Path, say: Say) -> list[str]:
    """A command line whose `data.train` and `data.val` are .beton files, or subsets of one; written to `run` where needed.

    recipe: one that the command line was applied to.

    Raises:
        UserError: as `prepare_data`.
    """
    if not needs_preparation(recipe):
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
    converted_elsewhere = recipe.data.val is not None and not needs_conversion(recipe.data.val)
    older = _fingerprint(listed, _options(recipe))
    inputs = f"{older}, data.val elsewhere" if converted_elsewhere else older
    stored = begin(folder, photos, inputs, say, older)
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
    photos, train = str(recipe.data.val), BetonSet.open(str(recipe.data.train))
    manifest = Manifest.of_beton(train.files[0].path)
    if manifest is None:
        raise UserError(
            f"{recipe.data.train}: has no class names for {photos}; give both as photographs or as .beton"
        )
    val = with_classes(open_val(photos), manifest.classes)
    inputs = _fingerprint((None, val), _options(recipe))
    if not begin(folder, photos, inputs, say).get("complete"):
        for text in _write("val", val, _options(recipe), folder):
            say(f"warning: {text}")
        finish(folder, photos, inputs, {"files": ["val.beton"]})
    return recipe.with_option("data.val", str(folder / "val.beton"))


def _convert_all(
    recipe: Recipe, listed: tuple[LabelledSet, LabelledSet | None], inputs: str, folder: Path
) -> dict[str, Any]:
    """Split, convert and record; what an interrupted call converted is kept."""
    plan = plan_photos(*listed, holds_out=recipe.data.val is None)
    with_num_classes(recipe, len(plan.train.source.classes), recipe.data.train)  # refuses before it converts
    write_text(folder / SPLIT, split_table(plan.rows()))
    warnings = plan.warnings + _write("train", plan.train, _options(recipe), folder)
    if plan.val is not None:
        warnings += _write("val", plan.val, _options(recipe), folder)
    prepared = {
        "classes": len(plan.train.source.classes),
        "val": plan.val is not None,
        "files": ["train.beton", *(["val.beton"] if plan.val is not None else [])],
        "summary": [_summary(recipe, plan, folder)],
        "warnings": warnings,
    }
    return finish(folder, str(recipe.data.train), inputs, prepared)


def _listed(recipe: Recipe) -> tuple[LabelledSet, LabelledSet | None]:
    val = recipe.data.val if needs_conversion(recipe.data.val) else None
    train, own_val = list_photos(str(recipe.data.train), val)
    return train, own_val if val or recipe.data.val is None else None


def _options(recipe: Recipe) -> WriteOptions:
    longest = max(LEAST_LONG_SIDE, PER_IMAGE_SIZE * recipe.model.image_size)
    return WriteOptions(max_resolution=longest, on_error="skip")


def _summary(recipe: Recipe, plan: Plan, folder: Path) -> str:
    counts = len(plan.train), len(plan.train.source.classes), 0 if plan.val is None else len(plan.val)
    return describe_sides(str(recipe.data.train), *counts, folder / SPLIT if plan.held_out else None)


def _write(split: str, images: LabelledSet, options: WriteOptions, folder: Path) -> list[str]:
    """Write `folder/<split>.beton`, or continue it; returns a warning if images cannot be read."""
    with progress(f"converting {split}") as show, hint_when_interrupted():
        manifest = write_beton(folder / f"{split}.beton", images.source, options, show)
    if not manifest.skipped:
        return []
    listed = ", ".join(f"{printable(name)} ({reason})" for name, reason in manifest.skipped[:LISTED])
    rest = f", ... {len(manifest.skipped) - LISTED:,} more" if len(manifest.skipped) > LISTED else ""
    return [f"{len(manifest.skipped):,} {split} images cannot be read and are left out: {listed}{rest}"]


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
