"""The training and validation images of a folder or table, their classes, and warnings about them."""

import csv
import io
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from beton_tools.base.console import by_suffix, printable
from beton_tools.base.errors import UserError
from beton_tools.sources import Source
from fastft.photos.duplicates import content_ids
from fastft.photos.holdout import hold_out, holdout_share, join_units
from fastft.photos.layout import LabelledSet, open_sets, open_val

LARGE_HOLDOUT = 1.5  # times the usual share
LISTED = 3  # files or classes named in a warning; split.csv lists all files


@dataclass(frozen=True)
class Plan:
    """`val` is None if the validation images are a .beton already, or too few to hold any out.

    held_out: the validation images were taken from the training images.
    missing: files that a table lists and that do not exist.
    """

    train: LabelledSet
    val: LabelledSet | None
    held_out: bool
    missing: list[str]
    warnings: list[str]

    def rows(self) -> list[tuple[str, str, str]]:
        """(file, class, split) of every image."""
        sides = [("train", self.train)] + ([] if self.val is None else [("val", self.val)])
        rows = [
            (name, found.source.classes[label], split)
            for split, found in sides
            for name, label in zip(found.source.names, found.source.labels.tolist(), strict=True)
        ]
        return rows + [(name, "", "missing") for name in self.missing]


def list_photos(train: str, val: str | None) -> tuple[LabelledSet, LabelledSet | None]:
    """The training and the validation images at two paths, as they are listed; `val` overrides a split of `train`.

    Raises:
        UserError: as `open_sets`.
    """
    found, own_val = open_sets(train)
    if val is None:
        return found, own_val
    return found, open_val(val)


def plan_photos(train: LabelledSet, val: LabelledSet | None, holds_out: bool = True) -> Plan:
    """Check the listed images and split them.

    holds_out: without `val`, take validation images from the training images.

    Raises:
        UserError: fewer than two classes, no image that exists, or a class of `val` that `train` does not have.
    """
    warnings: list[str] = []
    _warn_of_unused(train, warnings)
    if val is not None:
        _warn_of_unused(val, warnings)
    train, missing = _existing(train, warnings)
    train = _used_classes(train, warnings)
    if val is not None:
        val, missing_val = _existing(val, warnings)
        missing = missing + missing_val
        val = with_classes(val, train.source.classes)
    if val is None and holds_out:
        held = choose_held_out(train, warnings)
        if not held.any():
            return Plan(train, None, False, missing, warnings)
        sides = train.take(np.flatnonzero(~held)), train.take(np.flatnonzero(held))
        return Plan(*sides, True, missing, warnings)
    _warn_of_small_classes(train, warnings)
    ids = content_ids([train.source] if val is None else [train.source, val.source])
    _warn_of_other_labels(train, ids[0], warnings)
    if val is not None:
        warnings += shared_images(train.source, val.source, *ids)
        _warn_of_shared_groups(train, val, warnings)
    return Plan(train, val, False, missing, warnings)


def choose_held_out(found: LabelledSet, warnings: list[str]) -> np.ndarray:
    """bool (N,): the images to hold out, by class, with identical and grouped images on one side; adds to `warnings`."""
    _warn_of_small_classes(found, warnings)
    (ids,) = content_ids([found.source])
    _warn_of_other_labels(found, ids, warnings)
    units = _units(found, ids)
    held = hold_out(_text_order(found), units)
    if held.any():
        _warn_of_unheld_classes(found, held, warnings)
        _warn_of_large_units(held, warnings)
    else:
        related = hold_out(_text_order(found), np.arange(len(found))).any()
        reason = (
            "groups and identical images must stay on one side: no image can be held out, and nothing is evaluated; give "
            "smaller groups, or validation images by --data.val"
        )
        few = f"{len(found)} images are too few to hold any out: nothing is evaluated"
        warnings.append(reason if related else few)
    return held


def split_table(rows: Iterable[tuple[str, str, str]]) -> str:
    """The text of split.csv. rows: (file, class, split)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "class", "split"])
    writer.writerows(rows)
    return text.getvalue()


def describe_sides(data: str, train: int, classes: int, val: int, split: Path | None) -> str:
    """The numbers of images as one line. split: the split.csv of a hold-out; None if no images were held out."""
    source = f"{data}: {train:,} training images of {classes} classes"
    if not val:
        return source
    how = "" if split is None else f", held out by class ({split})"
    return f"{source}, {val:,} validation images{how}"


def _text_order(found: LabelledSet) -> np.ndarray:
    """int64 (N,): labels in the alphabetical order of the class names, as folders have them.

    Tables number classes that are numbers by value; the hold-out must not depend on that.
    """
    classes = found.source.classes
    ranks: np.ndarray = np.argsort(sorted(range(len(classes)), key=classes.__getitem__))
    return ranks[found.source.labels]


def _units(found: LabelledSet, ids: np.ndarray) -> np.ndarray:
    """Images of one group, or with identical bytes, form a unit."""
    groups = found.columns.groups
    if groups is None:
        return ids
    # an empty cell is no group
    own = [group or f"\0{i}" for i, group in enumerate(groups)]
    return join_units(ids, np.unique(own, return_inverse=True)[1])


def usable_images(found: LabelledSet, warnings: list[str]) -> LabelledSet:
    """The images that exist; what is not used is added to `warnings`.

    Raises:
        UserError: none exists.
    """
    _warn_of_unused(found, warnings)
    return _existing(found, warnings)[0]


# checks -----------------------------------------------------------------------------------------------------------------


def _existing(found: LabelledSet, warnings: list[str]) -> tuple[LabelledSet, list[str]]:
    """The images whose files exist, and the names of the others, which only a table can list."""
    source = found.source
    if source.kind != "table":
        return found, []
    _warn_of_repeated_files(found, warnings)
    exists = source.stamps(np.arange(len(found), dtype=np.int64)).any(axis=1)
    missing = [source.names[i] for i in np.flatnonzero(~exists).tolist()]
    if not missing:
        return found, []
    listed = _listing(missing)
    if not exists.any():
        windows = ", with / between folders" if "\\" in missing[0] else ""
        raise UserError(
            f"{source.root}: none of the {len(found):,} files that the table lists exists ({listed}); paths are relative to "
            f"the table{windows}"
        )
    warnings.append(f"{len(missing):,} of {len(found):,} files in the table do not exist: {listed}")
    return found.take(np.flatnonzero(exists)), missing


def _used_classes(train: LabelledSet, warnings: list[str]) -> LabelledSet:
    """The training set without classes that have no images: labels must not count them."""
    source = train.source
    counts = np.bincount(source.labels, minlength=len(source.classes))
    used = [name for name, count in zip(source.classes, counts.tolist(), strict=True) if count]
    empty = [name for name, count in zip(source.classes, counts.tolist(), strict=True) if not count]
    if empty:
        warnings.append(
            f"{_count(empty, 'class without images is', 'classes without images are')} left out: {_listing(empty)}"
        )
    if len(used) < 2:
        raise UserError(
            f"{source.root}: images of only one class ({printable(used[0])}); give at least two classes"
        )
    return train.take(np.arange(len(train), dtype=np.int64), used) if empty else train


def with_classes(val: LabelledSet, classes: Sequence[str]) -> LabelledSet:
    """The validation set with the labels of the training classes.

    Raises:
        UserError: an image of another class.
    """
    source, known = val.source, set(classes)
    found = {source.classes[label] for label in np.unique(source.labels).tolist()}
    unknown = sorted(found - known)
    if unknown:
        _refuse_other_unicode(source, unknown, classes)
        first = source.names[int(np.flatnonzero(source.labels == source.classes.index(unknown[0]))[0])]
        raise UserError(
            f"{source.root}: validation images of {_count(unknown, 'class', 'classes')} without training images "
            f"({_listing(unknown)}; {printable(first)}); add training images, or remove these"
        )
    return val.take(np.arange(len(val), dtype=np.int64), classes)


def _refuse_other_unicode(source: Source, unknown: Sequence[str], classes: Sequence[str]) -> None:
    """Raise UserError if a name is that of a training class with its accents written in another way, as macOS does."""
    known = {unicodedata.normalize("NFC", name) for name in classes}
    for name in unknown:
        if unicodedata.normalize("NFC", name) in known:
            raise UserError(
                f"{source.root}: class {printable(name)} and the training class of the same name differ in how Unicode writes "
                "their accents (NFC and NFD); rename one"
            )


def _warn_of_unused(found: LabelledSet, warnings: list[str]) -> None:
    warnings += found.unused
    left_out = found.source.left_out
    if left_out:
        count = sum(left_out.values())
        warnings.append(
            f"{found.source.root}: {count:,} file{'s are' if count > 1 else ' is'} of a kind that is not read, and left out: "
            f"{by_suffix(left_out)}"
        )


def _warn_of_small_classes(train: LabelledSet, warnings: list[str]) -> None:
    counts = np.bincount(train.source.labels, minlength=len(train.source.classes))
    single = [train.source.classes[k] for k in np.flatnonzero(counts < 2).tolist()]
    if single:
        warnings.append(
            f"{_count(single, 'class has', 'classes have')} fewer than 2 training images: {_listing(single)}"
        )


def _warn_of_unheld_classes(train: LabelledSet, held: np.ndarray, warnings: list[str]) -> None:
    evaluated = set(train.source.labels[held].tolist())
    without = [name for label, name in enumerate(train.source.classes) if label not in evaluated]
    if without:
        warnings.append(
            f"{_count(without, 'class without a held-out image is', 'classes without held-out images are')} not evaluated: "
            f"{_listing(without)}"
        )


def _warn_of_large_units(held: np.ndarray, warnings: list[str]) -> None:
    if held.mean() > LARGE_HOLDOUT * holdout_share(len(held)):
        warnings.append(
            f"{held.sum():,} of {len(held):,} images are held out, because groups and identical images stay together: give "
            "smaller groups, or validation images by --data.val"
        )


def _warn_of_other_labels(train: LabelledSet, ids: np.ndarray, warnings: list[str]) -> None:
    pairs = np.unique(np.column_stack([ids, train.source.labels]), axis=0)[:, 0]
    several, counts = np.unique(pairs, return_counts=True)
    doubtful = several[counts > 1].tolist()
    if doubtful:
        names = [train.source.names[int(np.flatnonzero(ids == i)[0])] for i in doubtful[:LISTED]]
        warnings.append(
            f"{_count(doubtful, 'image appears', 'images appear')} in several classes: {_listing(names, len(doubtful))}"
        )


def _warn_of_shared_groups(train: LabelledSet, val: LabelledSet, warnings: list[str]) -> None:
    ours, theirs = (set(found.columns.groups or ()) - {""} for found in (train, val))
    if shared := sorted(ours & theirs):
        warnings.append(
            f"{_count(shared, 'group has', 'groups have')} both training and validation images; accuracy will be too high: "
            f"{_listing(shared)}"
        )


def _warn_of_repeated_files(found: LabelledSet, warnings: list[str]) -> None:
    names, counts = np.unique(np.array(list(found.source.names), object), return_counts=True)
    if repeated := names[counts > 1].tolist():
        warnings.append(
            f"{_count(repeated, 'file is', 'files are')} listed several times, and every row counts as an image: "
            f"{_listing(repeated)}"
        )


def shared_images(train: Source, val: Source, train_ids: np.ndarray, val_ids: np.ndarray) -> list[str]:
    """A warning if images of `val` are also in `train`. ids: of their contents, as `content_ids` gives them."""
    shared = np.flatnonzero(np.isin(val_ids, train_ids)).tolist()
    if not shared:
        return []
    names = [val.names[i] for i in shared[:LISTED]]
    return [
        f"{_count(shared, 'validation image is', 'validation images are')} also a training image; accuracy will be too "
        f"high: {_listing(names, len(shared))}"
    ]


def _count(found: Sequence[object], one: str, several: str) -> str:
    return f"{len(found):,} {one if len(found) == 1 else several}"


def _listing(names: Sequence[str], total: int | None = None) -> str:
    total = len(names) if total is None else total
    rest = f", ... {total - LISTED:,} more" if total > LISTED else ""
    return ", ".join(map(printable, names[:LISTED])) + rest
