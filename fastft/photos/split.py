"""A folder's or table's training and validation images, their classes, and warnings about them."""

import csv
import io
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from beton_tools.base.console import by_suffix, counted, printable
from beton_tools.base.errors import UserError
from beton_tools.base.image_formats import HEIC_NEEDS, HEIC_SUFFIXES, open_image, reads_heic
from beton_tools.read.sample_table import classes_of, count_classes, strata
from beton_tools.sources import Source
from fastft.data.units import number_groups, units_of
from fastft.data.warnings import ACCURACY, NUMBER, Labelled, Warned, data_warnings, listing, warn_of_animations, warning
from fastft.photos.holdout import hold_out
from fastft.photos.layout import LabelledSet
from fastft.photos.old_split import TRAIN, OldSplit, hold_out_new
from fastft.photos.same_images import content_ids, contents

MOVING_SUFFIXES = (".gif", ".webp", ".tif", ".tiff")
MOST_READ = 2000  # files that may be animations
LEAST_PER_CLASS = 2  # images on average, if all class names are numbers


@dataclass(frozen=True)
class Split:
    """Images that exist, labelled by the classes that have training images.

    Attributes:
        val: None if there are none.
        missing: files that a table lists and that do not exist.
        held_out: the validation images were taken from the training images. False if there were too few to take any.
        kept: a line about an earlier run whose split was kept, else empty.
    """

    train: LabelledSet
    val: LabelledSet | None
    missing: list[str]
    warnings: list[Warned]
    held_out: bool = False
    kept: str = ""

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return (file, class, split, content) for every image. See `contents`."""
        rows = [
            (name, found.class_text(i), split, content)
            for split, found in (("train", self.train), ("val", self.val))
            if found is not None
            for i, (name, content) in enumerate(zip(found.source.names, contents(found.source), strict=True))
        ]
        return rows + [(name, "", "missing", "") for name in self.missing]


def check_photos(train: LabelledSet, val: LabelledSet | None) -> Split:
    """Return the listed images that can be used, not yet split.

    Raises:
        UserError: fewer than two classes, no image that exists, or a class in `val` that `train` does not have.
    """
    warnings = _unused(train) + ([] if val is None else _unused(val))
    train, missing, said = _existing(train)
    train, heic = _without_heic(train)
    train, empty = _used_classes(train)
    warnings += said + heic + empty
    if val is not None:
        val, missing_val, said = _existing(val)
        val, heic = _without_heic(val)
        said += heic
        val = _with_classes(val, train.source.classes)
        missing, warnings = missing + missing_val, warnings + said
    return Split(train, val, missing, warnings)


def split_photos(found: Split, holds_out: bool = True, old: OldSplit | None = None) -> Split:
    """Split the images, and warn about anything unusual in them.

    Args:
        holds_out: without `val`, take validation images from `train`.
        old: an earlier run's split, which is kept.
    """
    train, val = found.train, found.val
    if val is None and holds_out:
        held, said, kept = choose_held_out(train, old)
        if not held.any():
            return replace(found, warnings=found.warnings + said)
        train, val = (train.take(np.flatnonzero(side)) for side in (~held, held))
        return Split(train, val, found.missing, found.warnings + said, held_out=True, kept=kept)
    ids = content_ids([train.source] if val is None else [train.source, val.source])
    sides = [describe_photos(side, own) for side, own in zip(filter(None, (train, val)), ids, strict=True)]
    return replace(found, warnings=found.warnings + _small_classes(train) + data_warnings(*sides))


def choose_held_out(found: LabelledSet, old: OldSplit | None = None) -> tuple[np.ndarray, list[Warned], str]:
    """Choose the images to hold out, by class. Identical and grouped images stay on one side.

    Returns:
        (images to hold out: bool (N,), warnings, a line about `old`).
    """
    (ids,) = content_ids([found.source])
    warnings = _small_classes(found) + data_warnings(describe_photos(found, ids))
    labels, units, kept = _text_order(found), _units(found, ids), ""
    if old is None:
        held = hold_out(labels, units)
    else:
        sides = old.sides(found.source)
        held = hold_out_new(sides, labels, units, hold_out)
        kept = old.describe(sides, held)
    if held.any():
        return held, warnings + _unheld_classes(found, held), kept
    if old is not None and (old.sides(found.source) == TRAIN).all():
        reason = (
            f"{old.run} was trained on all these images, so none can be held out, and nothing is evaluated. Add images "
            "that it has not seen, or give validation images by --data.val"
        )
    elif hold_out(_text_order(found), np.arange(len(found))).any():
        reason = (
            "groups and identical images must stay on one side, so no image can be held out, and nothing is evaluated. Give "
            "smaller groups, or validation images by --data.val"
        )
    else:
        images = "1 image is" if len(found) == 1 else f"{len(found)} images are"
        reason = f"{images} too few to hold any out, so nothing is evaluated"
    return held, [*warnings, Warned(reason, ACCURACY)], kept


def split_table(rows: Iterable[tuple[str, str, str, str]]) -> str:
    """Return the text of split.csv. rows: (file, class, split, content)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "class", "split", "content"])
    writer.writerows(rows)
    return text.getvalue()


def describe_sides(data: str, train: int, classes: int, val: int, split: Path | None) -> str:
    """Describe how many images there are, in one line. split: the hold-out's split.csv, or None without a hold-out."""
    source = f"{data}: {counted(train, 'training images')} of {counted(classes, 'classes')}"
    if not val:
        return source
    how = "" if split is None else f", held out by class ({split})"
    return f"{source}, {counted(val, 'validation images')}{how}"


def _text_order(found: LabelledSet) -> np.ndarray:
    """Return labels that number the class names alphabetically, as for folders: int64 (N,).

    Multi-label: see `strata`.

    Tables sort classes that are numbers by value, and the hold-out must not depend on that.
    """
    classes = found.source.classes
    ranks = np.argsort(sorted(range(len(classes)), key=classes.__getitem__))
    order: np.ndarray = np.append(ranks, len(ranks))[strata(found.source.labels)]
    return order


def _units(found: LabelledSet, ids: np.ndarray) -> np.ndarray:
    """Return a unit per image. See `units_of`."""
    groups = found.source.groups
    return units_of(ids, number_groups(None if groups is None else list(groups)), len(found))


def describe_photos(found: LabelledSet, ids: np.ndarray) -> Labelled:
    """Describe the images for `data_warnings`. ids: numbers for their contents, as `content_ids` gives them."""
    source = found.source
    return Labelled(
        source.title, source.classes, source.labels, lambda: list(source.names), ids,
        None if source.groups is None else list(source.groups), partial(_is_image, source),
    )  # fmt: skip


# checks -----------------------------------------------------------------------------------------------------------------


def _existing(found: LabelledSet) -> tuple[LabelledSet, list[str], list[Warned]]:
    """Return (images whose files exist, names of the others, warnings). Only a table can list files that do not exist."""
    source = found.source
    if source.kind != "table":
        return found, [], []
    names, counts = np.unique(np.array(list(source.names), object), return_counts=True)
    warnings = warning(
        "{} listed several times, and every row counts as an image", "file is", "files are", names[counts > 1].tolist()
    )
    exists = source.stamps(np.arange(len(found), dtype=np.int64)).any(axis=1)
    missing = [source.names[i] for i in np.flatnonzero(~exists).tolist()]
    if not missing:
        return found, [], warnings
    listed = listing(missing)
    if not exists.any():
        windows = ", with / between folders" if "\\" in missing[0] else ""
        raise UserError(
            f"{source.title}: none of the {len(found):,} files that the table lists exists ({listed}). Paths are relative to "
            f"the table{windows}"
        )
    warnings.append(Warned(f"{len(missing):,} of {len(found):,} files in the table do not exist: {listed}"))
    return found.take(np.flatnonzero(exists)), missing, warnings


def _without_heic(found: LabelledSet) -> tuple[LabelledSet, list[Warned]]:
    """Drop HEIC images if they cannot be read, so that none is held out. Also returns a warning about them."""
    if reads_heic():
        return found, []
    heic = np.array([name.lower().endswith(HEIC_SUFFIXES) for name in found.source.names])
    text = f"{heic.sum():,} of {len(found):,} images are HEIC and left out: {HEIC_NEEDS}"
    if heic.all():
        raise UserError(f"{found.source.title}: {text}")
    return (found.take(np.flatnonzero(~heic)), [Warned(text)]) if heic.any() else (found, [])


def _used_classes(train: LabelledSet) -> tuple[LabelledSet, list[Warned]]:
    """Drop classes without images from the training set, because labels must not count them. Returns a warning too."""
    source = train.source
    counts = count_classes(source.labels, len(source.classes))
    used = [name for name, count in zip(source.classes, counts.tolist(), strict=True) if count]
    empty = [name for name, count in zip(source.classes, counts.tolist(), strict=True) if not count]
    if len(used) < 2:
        raise UserError(
            f"{source.title}: there are images of only one class ({printable(used[0])}). Give at least two classes"
        )
    if counts.sum() < LEAST_PER_CLASS * len(used) and all(map(NUMBER.fullmatch, used)):
        raise UserError(
            f"{source.title}: the labels look like measurements, {len(used):,} numbers for {int(counts.sum()):,} images. "
            "Regression is not supported. Give classes, such as number ranges"
        )
    warnings = warning("{} left out", "class without images is", "classes without images are", empty)
    return train.take(np.arange(len(train), dtype=np.int64), used) if empty else train, warnings


def _with_classes(val: LabelledSet, classes: Sequence[str]) -> LabelledSet:
    """Give the validation set the training classes' labels. Raises UserError if an image has another class."""
    source, known = val.source, set(classes)
    found = {source.classes[label] for label in np.flatnonzero(count_classes(source.labels)).tolist()}
    unknown = sorted(found - known)
    if unknown:
        label = source.classes.index(unknown[0])
        first = next(name for name, own in zip(source.names, source.labels, strict=True) if label in classes_of(own))
        count = "1 class" if len(unknown) == 1 else f"{len(unknown):,} classes"
        raise UserError(
            f"{source.title}: validation images of {count} without training images ({listing(unknown)}: {printable(first)}). "
            "Add training images, or remove these"
        )
    return val.take(np.arange(len(val), dtype=np.int64), classes)


# warnings: lists with no or one sentence ------------------------------------------------------------------------------


def _unused(found: LabelledSet) -> list[Warned]:
    left_out, root = found.source.left_out, found.source.root
    if not left_out:
        return list(map(Warned, found.unused))
    count = sum(left_out.values())
    are = "s are" if count > 1 else " is"
    what = f"{count:,} file{are} left out, because fastft cannot read the format: {by_suffix(left_out)}"
    return list(map(Warned, [*found.unused, f"{root}: {what}"]))


def _small_classes(train: LabelledSet) -> list[Warned]:
    counts = count_classes(train.source.labels, len(train.source.classes))
    single = [train.source.classes[k] for k in np.flatnonzero(counts < 2).tolist()]
    return warning("{} fewer than 2 training images", "class has", "classes have", single)


def _unheld_classes(train: LabelledSet, held: np.ndarray) -> list[Warned]:
    evaluated = count_classes(train.source.labels[held], len(train.source.classes))
    without = [name for name, images in zip(train.source.classes, evaluated, strict=True) if not images]
    one, several = "class without a held-out image is", "classes without held-out images are"
    return warning("{} not evaluated", one, several, without, ACCURACY)


def warn_of_moving(found: LabelledSet) -> list[Warned]:
    """Warn about animations and files with several pages, without converting.

    Only files whose suffix allows it are read, and at most MOST_READ, because this is for `fastft explain`.
    """
    source, count = found.source, 0
    likely = (i for i, name in enumerate(source.names) if name.lower().endswith(MOVING_SUFFIXES))
    for i in islice(likely, MOST_READ):
        with suppress(Exception):  # Pillow raises many types for damaged files, which the conversion reports
            count += getattr(open_image(source.locate(i).read()), "is_animated", False)
    return warn_of_animations(source.title, count)


def _is_image(source: Source, i: int) -> bool:
    """False for an empty or damaged file, such as a server's error page. Equal ones are not the same image."""
    try:
        open_image(source.locate(i).read())
    except Exception:  # Pillow raises many types
        return False
    return True
