"""Convert photographs once into a run directory, or hold images out of a .beton.

The files are reused until the inputs change.

`RUN/data/` holds `train.beton` and `val.beton`. If images are held out of a .beton, it holds `train.subset.json` and
`val.subset.json` instead (see `beton_tools.read.subset_file`: no image is copied). `split.csv` lists file, class and
split, and `prepared.json` records what the files were made from.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from beton_tools.base.atomic import write_text
from beton_tools.base.console import printable
from beton_tools.base.errors import UserError
from beton_tools.base.progress_bar import progress
from beton_tools.base.signals import hint_when_interrupted
from beton_tools.read.beton_paths import SUBSET, find_betons
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.subset_file import SubsetFile
from beton_tools.write.images import count_notes
from beton_tools.write.writer import WriteOptions, write_beton
from fastft.data.warnings import listing, warn_of_animations
from fastft.machine.distributed import World
from fastft.model.recipe_model import check_model
from fastft.photos.holdout import VERSION
from fastft.photos.layout import LabelledSet, open_sets, open_val
from fastft.photos.old_split import OldSplit, read_old_split
from fastft.photos.paths import holds_out_of_beton, needs_conversion, needs_preparation
from fastft.photos.same_images import as_source, contents
from fastft.photos.split import (
    Split,
    check_photos,
    choose_held_out,
    describe_sides,
    split_photos,
    split_table,
    warn_of_moving,
)
from fastft.photos.state import SPLIT, Made, MadeFrom, prepare_once
from fastft.recipe import AskedRecipe
from fastft.recipe.schema import Data
from fastft.recipe.training_images import GIVE, MULTI_LABEL, Images, largest_size, with_images
from fastft.run.inputs import open_images
from fastft.run.run_directory import run_folder
from fastft.run.said import Say
from fastft.run.start_weights import with_run_weights

LEAST_LONG_SIDE = 500  # pixels, ImageNet's usual size
TO_VAL = "val.beton"
PER_IMAGE_SIZE = 2  # a random crop with half the area still has more pixels than the model sees


def count_photos(recipe: AskedRecipe) -> tuple[Images, Sequence[str]]:
    """Return (the images as `prepare_data` splits them, warnings about them), without converting or writing anything.

    Raises:
        UserError: as `prepare_data`.
    """
    photos = str(recipe.data.train)
    if holds_out_of_beton(recipe):
        betons = open_images(photos, recipe.data.classes_by_position)
        held, warnings, _ = choose_held_out(LabelledSet(as_source(betons)), read_old_split(recipe))
        return replace(Images.of_betons(betons, None), train=int((~held).sum()), val=int(held.sum())), warnings
    _check_paths(recipe)
    plan = split_photos(check_photos(*_listed(recipe)), recipe.data.val is None, read_old_split(recipe))
    moving = [text for side in (plan.train, plan.val) if side is not None for text in warn_of_moving(side)]
    return _images(photos, plan), plan.warnings + moving


def prepare_data(
    recipe: AskedRecipe,
    say: Say,
    world: World | None = None,
    run: Path | None = None,
    check: Callable[[AskedRecipe], None] = check_model,
) -> tuple[AskedRecipe, Images | None]:
    """Convert or divide the images, and return (the recipe, the images' source).

    In this recipe, `data.train` and `data.val` are .beton files, or subsets of one. The source is None for .beton files
    that are used as they are. `fastft.run.inputs.open_inputs` opens the files.

    Args:
        world: the run's processes, which all call this. Process 0 prepares, and the others wait. None stands for this
            process alone.
        run: a folder to use instead of the run directory, for several runs on the same images.
        check: called with a recipe that has the numbers of images and classes, before photographs are converted.

    Raises:
        UserError: a file does not exist, the images have changed since the run's first checkpoint, another process uses
            the folder, `data.num_classes` on the command line contradicts the images, or `check_photos` or `write_beton`
            raises it.
    """
    _check_paths(recipe)  # before weights are fetched
    needed = needs_preparation(recipe)
    if not (needed if world is None else world.any(needed)):
        return recipe, None

    def work() -> tuple[Data, Images | None]:
        from_photos = partial(_prepare_photos, check=check)
        prepare = from_photos if needs_conversion(recipe.data.train) else _prepare_holdout
        folder = (run or run_folder(recipe)) / "data"
        return prepare(recipe, folder, say) if needed else (recipe.data, None)

    data, images = work() if world is None else world.in_main(work)
    return recipe.with_option("data.train", data.train).with_option("data.val", data.val), images


def prepare_overrides(
    recipe: AskedRecipe,
    overrides: Sequence[str],
    run: Path,
    say: Say,
    world: World,
    check: Callable[[AskedRecipe], None],
) -> list[str]:
    """Return a command line whose `data.train` and `data.val` are .beton files, or subsets of one.

    The files are written to `run` if needed.

    Args:
        recipe: one that the command line was applied to.
        check: as in `prepare_data`.

    Raises:
        UserError: as `prepare_data`.
    """
    if recipe.data.train is None:
        return list(overrides)
    data = prepare_data(recipe, say, world, run, check)[0].data
    paths = () if data == recipe.data else (("train", data.train), ("val", data.val))
    return [*overrides, *(f"--data.{key}={path}" for key, path in paths if path)]


def _check_paths(recipe: AskedRecipe) -> None:
    """Raise UserError for files that do not exist, and for photographs beside a .beton."""
    paths = [path for path in (recipe.data.train, recipe.data.val) if path is not None]
    betons = [path for path in paths if not needs_conversion(path)]
    for file in (file for path in betons for file in find_betons(path)):
        if not os.path.lexists(file):
            raise UserError(f"{file}: no such file or folder. {GIVE}")
    if 0 < len(betons) < len(paths):
        (photos,) = set(paths) - set(betons)
        raise UserError(
            f"{betons[0]} is a .beton, but {photos} is not. Give both data.train and data.val "
            "as photographs, or both as .beton, which "
            "fastft convert folder writes (with --classes-of TRAIN.beton)"
        )


def _prepare_holdout(recipe: AskedRecipe, folder: Path, say: Say) -> tuple[Data, Images | None]:
    """Make subsets of the .beton. If it has too few images to hold any out, it is used whole."""
    data, old = str(recipe.data.train), read_old_split(recipe)
    betons = open_images(data, recipe.data.classes_by_position)
    whole, images = betons.as_subset_file(), Images.of_betons(betons, None)
    with_images(recipe, images)  # refuses a wrong number of classes before anything is written

    def choose() -> Made:
        labelled = as_source(betons)
        found = LabelledSet(labelled)
        held, warnings, kept = choose_held_out(found, old)
        sides = np.where(held, "val", "train").tolist()
        classes = [found.class_text(i) for i in range(len(found))]
        rows = sorted(zip(labelled.names, classes, sides, contents(labelled), strict=True), key=lambda row: row[2])
        write_text(folder / SPLIT, split_table(rows))
        counts = int((~held).sum()), len(labelled.classes), int(held.sum())
        summary = [*filter(None, [kept]), describe_sides(data, *counts, folder / SPLIT)]
        return Made.with_warnings(warnings, held_out=np.flatnonzero(held).tolist(), summary=summary)

    source = _with_split(MadeFrom(data, _content(whole)), old)
    held = np.zeros(len(betons), bool)
    held[prepare_once(folder, source, say, lambda: None, choose).held_out] = True
    if not held.any():
        return recipe.data, None
    paths = {side: folder / f"{side}{SUBSET}" for side in ("train", "val")}
    for side, chosen in (("train", ~held), ("val", held)):  # written each time, because the .beton may have been moved
        write_text(paths[side], SubsetFile(whole.files, whole.samples[chosen]).to_json())
    made = replace(recipe.data, train=str(paths["train"]), val=str(paths["val"]))
    return made, replace(images, train=int((~held).sum()), val=int(held.sum()))


def _prepare_photos(
    recipe: AskedRecipe, folder: Path, say: Say, check: Callable[[AskedRecipe], None]
) -> tuple[Data, Images]:
    """Convert `data.train` and `data.val`."""
    photos, (train, val) = str(recipe.data.train), _listed(recipe)
    for given in [each.source for each in (train, val) if each is not None]:
        if given.columns:
            say(f"{given.title}: {given.columns}")
    of_val = "" if val is None else _fingerprint(val)
    old = read_old_split(recipe) if val is None else None
    longest = _options(recipe).max_resolution
    source = _with_split(MadeFrom(photos, _fingerprint(train), of_val, longest, recipe.data.background), old)
    for photographs in (train, val):
        _refuse_inside(photographs, folder.parent)
    found = check_photos(train, val)
    images = _images(photos, found)
    check_images = partial(check, with_run_weights(with_images(recipe, images)))
    made = prepare_once(folder, source, say, check_images, partial(_convert_all, recipe, found, folder, old, say))
    val_path = str(folder / TO_VAL) if TO_VAL in made.files else None
    return replace(recipe.data, train=str(folder / "train.beton"), val=val_path), images


def _images(photos: str, found: Split) -> Images:
    source = found.train.source
    return Images(
        photos, len(found.train), 0 if found.val is None else len(found.val), len(source.classes),
        multi_label=source.labels.ndim == 2, reading=source.reading,
    )  # fmt: skip


def _listed(recipe: AskedRecipe) -> tuple[LabelledSet, LabelledSet | None]:
    """Return the photographs in `data.train`, and in `data.val` or in the validation split of `data.train`, if any."""
    single = MULTI_LABEL in recipe.given and not recipe.data.multi_label
    train, val = open_sets(str(recipe.data.train), single)
    if recipe.data.val is not None:
        val = open_val(recipe.data.val, single)
    if recipe.data.multi_label or train.source.labels.ndim == 2 or (val is not None and val.source.labels.ndim == 2):
        reading = train.source.reading or (val.source.reading if val is not None else "")
        return train.with_label_sets(reading), None if val is None else val.with_label_sets(reading)
    return train, val


def _refuse_inside(photographs: LabelledSet | None, run: Path) -> None:
    """Raise UserError if the run directory is below class folders, where its pictures would be read as photographs."""
    if photographs is None or photographs.source.kind != "folder":
        return
    if run.resolve().is_relative_to(Path(str(photographs.source.root)).resolve()):
        raise UserError(
            f"the run directory {run} is in the photographs' folder, and its pictures would be taken for photographs. "
            "Give another one with --train.run_dir (fastft sweep: --out)"
        )


def _convert_all(recipe: AskedRecipe, found: Split, folder: Path, old: OldSplit | None, say: Say) -> Made:
    """Split and convert, and keep what an interrupted call converted."""
    plan = split_photos(found, recipe.data.val is None, old)
    classes = plan.train.source.classes
    write_text(folder / SPLIT, split_table(plan.rows()))
    warnings = plan.warnings + _write("train", plan.train, recipe, folder, say)
    stored = BetonSet.open(folder / "train.beton")
    counts = stored.class_counts
    unread = [name for name, count in zip(classes, counts, strict=True) if not count]
    if unread:
        warnings.append(f"no training image can be read in {', '.join(map(printable, unread))}")
    stored_val = 0
    if plan.val is not None:
        warnings += _write("val", plan.val, recipe, folder, say)
        stored_val = len(BetonSet.open(folder / TO_VAL))
    split = folder / SPLIT if plan.held_out else None
    sides = describe_sides(str(recipe.data.train), len(stored), len(classes), stored_val, split)
    return Made.with_warnings(
        warnings,
        files=["train.beton", *([TO_VAL] if plan.val is not None else [])],
        summary=[*filter(None, [plan.kept]), sides],
    )


def _options(recipe: AskedRecipe) -> WriteOptions:
    longest = max(LEAST_LONG_SIDE, PER_IMAGE_SIZE * largest_size(with_run_weights(recipe)))
    return WriteOptions(max_resolution=longest, on_error="skip", background=recipe.data.background)


def _write(split: str, images: LabelledSet, recipe: AskedRecipe, folder: Path, say: Say) -> list[str]:
    """Write `folder/<split>.beton`, or continue it.

    Returns warnings about images that cannot be read, or lose values.
    """
    with progress(f"converting {split}", say=say) as show, hint_when_interrupted():
        manifest = write_beton(folder / f"{split}.beton", images.source, _options(recipe), show)
    skipped = [f"{name} ({reason})" for name, reason in manifest.skipped]
    return warn_of_animations(split, manifest.animations) + [
        f"{count:,} {split} image{'' if count == 1 else 's'} {text}"
        for count, text in (
            (len(skipped), f"left out because unreadable: {listing(skipped)}"),
            *((number, f"with {text}") for text, number in count_notes(manifest.encodings).items()),
        )
        if count
    ]


def _fingerprint(found: LabelledSet) -> str:
    """Hash the images' names, labels, groups, sizes and times, but not their folder's location."""
    source, stamps = found.source, found.source.stamps(np.arange(len(found), dtype=np.int64)).tolist()
    groups = None if source.groups is None else list(source.groups)
    described = [VERSION, source.kind, source.classes, groups, stamps, source.labels.tolist()]
    return _digest(described, source.names.offsets.tobytes() + source.names.blob)


def _content(whole: SubsetFile) -> str:
    """Hash the files' tables and the chosen samples, but not the files' location."""
    return _digest([VERSION, "beton", [file.content for file in whole.files]], whole.samples.tobytes())


def _with_split(source: MadeFrom, old: OldSplit | None) -> MadeFrom:
    """Return the record with the earlier run's split."""
    if old is None:
        return source
    return replace(source, old=old.run.name, old_split=_digest([sorted(old.by_content.items()), old.saw_all], b""))


def _digest(described: list[object], data: bytes) -> str:
    return hashlib.blake2b(json.dumps(described).encode() + data, digest_size=16).hexdigest()
