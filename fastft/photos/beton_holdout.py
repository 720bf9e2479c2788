"""Hold validation images out of a .beton: both sides are subsets of its samples, so no image is copied.

`RUN/data/` holds `train.subset.json` and `val.subset.json` (see `beton_tools.read.subset_file`), `split.csv` (file, class,
split) and `prepared.json`, which makes a later call use the same images while the .beton is unchanged.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from beton_tools.base.atomic import write_text
from beton_tools.base.names import Names
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.subset_file import SUFFIX, SubsetFile
from beton_tools.sources.base import SpanSource
from fastft.photos.holdout import VERSION
from fastft.photos.layout import LabelledSet
from fastft.photos.photo_plan import choose_held_out, describe_sides, split_table
from fastft.photos.state import SPLIT, Inputs, Say, prepare_once
from fastft.recipe import Recipe
from fastft.recipe.training_images import with_training_files


def count_after_holdout(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """(the recipe for the training images of its .beton, from which others would be held out; warnings); nothing is written.

    Raises:
        UserError: as `BetonSet.open`.
    """
    betons = BetonSet.open(str(recipe.data.train))
    held, warnings = choose_held_out(LabelledSet(as_source(betons)))
    return with_training_files(recipe, betons.take(np.flatnonzero(~held))), warnings


def prepare_holdout(recipe: Recipe, folder: Path, say: Say) -> Recipe:
    """The recipe with subsets of its .beton as `data.train` and `data.val`, written to `folder`.

    If the images are too few to hold any out, the recipe is returned as it is.

    Raises:
        UserError: as `BetonSet.open`; the .beton has changed since the run's first checkpoint.
    """
    data = str(recipe.data.train)
    betons = BetonSet.open(data)
    whole = betons.as_subset_file()
    with_training_files(recipe, betons)  # refuses a wrong number of classes before anything is written
    inputs = Inputs(data, fingerprint_of(whole))
    stored = prepare_once(folder, inputs, say, lambda: None, lambda: _hold_out(betons, data, folder))
    held = np.zeros(len(betons), bool)
    held[stored["held_out"]] = True
    recipe = with_training_files(recipe, betons.take(np.flatnonzero(~held)))
    if not held.any():
        return recipe
    # written each time: the .beton may have been moved
    for side, chosen in (("train", ~held), ("val", held)):
        path = folder / f"{side}{SUFFIX}"
        write_text(path, SubsetFile(whole.files, whole.samples[chosen]).to_json())
        recipe = recipe.with_option(f"data.{side}", str(path))
    return recipe


def as_source(betons: BetonSet) -> SpanSource:
    """The samples as labelled images, in their order; those of a file without a manifest are named by their numbers."""
    files = betons.files_of(np.arange(len(betons)))
    names = betons.read_names()
    if names is None:
        names = [f"{betons.files[files[i]].path.name}[{betons.locate(i)[1]}]" for i in range(len(betons))]
    return SpanSource(
        "beton",
        betons.files[0].path,
        tuple(betons.class_names),
        None,
        betons.labels,
        Names.of(names),
        archives=[str(beton.path) for beton in betons.files],
        archive_stamps=[(beton.file_size, beton.modified_ns) for beton in betons.files],
        archive_ids=files,
        offsets=betons.pointers,
        lengths=betons.sizes,
    )


def _hold_out(betons: BetonSet, data: str, folder: Path) -> dict[str, Any]:
    """Choose the images, write split.csv; returns the record of the hold-out."""
    source = as_source(betons)
    held, warnings = choose_held_out(LabelledSet(source))
    sides = np.where(held, "val", "train").tolist()
    classes = [source.classes[label] for label in source.labels.tolist()]
    rows = sorted(zip(source.names, classes, sides, strict=True), key=lambda row: row[2])
    write_text(folder / SPLIT, split_table(rows))
    counts = int((~held).sum()), len(source.classes), int(held.sum())
    return {
        "held_out": np.flatnonzero(held).tolist(),
        "summary": [describe_sides(data, *counts, folder / SPLIT)],
        "warnings": warnings,
    }


def fingerprint_of(whole: SubsetFile) -> str:
    """Changes with the tables of the files and the chosen samples; not with the place of the files."""
    described = [VERSION, "beton", [file.content for file in whole.files]]
    digest = hashlib.blake2b(json.dumps(described).encode(), digest_size=16)
    digest.update(whole.samples.tobytes())
    return digest.hexdigest()
