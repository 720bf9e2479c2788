"""How photographs are laid out: one labelled set, or a training and a validation set.

Accepted are a folder with a folder per class, a folder with `train/` and `val/` (or `valid/`, `validation/`, `dev/`), a
CSV or parquet table, and archives and shards as `fastft convert` takes them. `test/` is never used.
"""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from beton_tools.base.console import printable
from beton_tools.base.errors import UserError
from beton_tools.base.image_formats import is_image_name
from beton_tools.base.user_files import expand_home
from beton_tools.read.sample_table import classes_of
from beton_tools.sources import Source, find_split, open_source
from beton_tools.sources.base import no_labels, sort_labels, subset
from beton_tools.sources.folder import class_folders, has_images
from beton_tools.sources.parquet import ParquetSource, open_tables
from beton_tools.sources.path_table import SEPARATOR, SPLIT_VALUES, is_csv, splits_of
from beton_tools.sources.remote import RemotePath, source_path
from fastft.photos.paths import TABLE_SUFFIXES
from fastft.recipe.training_images import GIVE


@dataclass(frozen=True)
class LabelledSet:
    """Labelled images in canonical order.

    splits: "train", "val" or "test" for each image, or None. unused: sentences about what lies beside the images and is not
    used.
    """

    source: Source
    splits: list[str] | None = None
    unused: tuple[str, ...] = ()

    def take(self, indices: np.ndarray, classes: Sequence[str] | None = None) -> "LabelledSet":
        """Return the images at `indices`, labelled by `classes` (default: their own labels)."""
        splits = None if self.splits is None else [self.splits[i] for i in indices.tolist()]
        return LabelledSet(
            subset(self.source, indices, self.source.classes if classes is None else classes), splits, self.unused
        )

    def with_label_sets(self, reading: str) -> "LabelledSet":
        """Return the images with their labels as sets, uint8 (N, K). reading: the reason, if a table gives one."""
        labels = self.source.labels
        sets = labels if labels.ndim == 2 else np.eye(len(self.source.classes), dtype=np.uint8)[labels]
        return replace(self, source=replace(self.source, labels=sets, reading=reading))

    def class_text(self, i: int) -> str:
        """Return an image's class. Multi-label: "cat;dog"."""
        return SEPARATOR.join(self.source.classes[k] for k in classes_of(self.source.labels[i]))

    def __len__(self) -> int:
        return len(self.source.names)


def open_sets(path: str, single: bool = False) -> tuple[LabelledSet, LabelledSet | None]:
    """Open the training set at `path`, and its validation set if it has one. single: see `open_source`.

    Raises:
        UserError: no such path, no images, no training images, or an unknown layout.
    """
    train, val = _open_sides(path, single)
    if train is None:
        raise UserError(f"{path}: no row has the split 'train'. Correct the split column")
    return train, val


def open_val(path: str, single: bool = False) -> LabelledSet:
    """Open the images at `path` to validate on: its validation set, or all images if it has no splits.

    Raises:
        UserError: as `open_sets`, or a table only has test images.
    """
    train, val = _open_sides(path, single)
    found = val or train
    if found is None:
        raise UserError(f"{path}: no row has the split 'val'. Correct the split column")
    return found


def _open_sides(path: str, single: bool) -> tuple[LabelledSet | None, LabelledSet | None]:
    """Open the training and the validation set at `path`. The first is None only for a table without training rows."""
    if isinstance(source_path(path), RemotePath):
        raise UserError(
            f"{path}: training reads local files. Convert the data first (`fastft convert folder --data {path} --out "
            "photos.beton`), then give --data.train=photos.beton"
        )
    place = expand_home(path)
    if not os.path.lexists(place) and not glob.has_magic(str(place)):
        raise UserError(f"{place}: no such file or folder. {GIVE}")
    train, val, unused = _split_folders(place)
    if train is not None:
        opened = _open(train, single)
        return replace(opened, unused=(*unused, *opened.unused)), None if val is None else _open(val, single)
    shards = _shards(place, "train")
    if shards is not None:
        val_shards = _shards(place, "val")
        return _open_files(shards, single), None if val_shards is None else _open_files(val_shards, single)
    whole = _open(place, single)
    splits = whole.splits
    if splits is None:
        return whole, None
    parts = {split: np.flatnonzero([s == split for s in splits]) for split in ("train", "val")}
    train_part, val_part = (whole.take(part) if len(part) else None for part in parts.values())
    return train_part, val_part


def _split_folders(place: Path) -> tuple[Path | None, Path | None, tuple[str, ...]]:
    """Return (training folder, validation folder, what beside them is not used) if `place` contains splits.

    A folder with a training folder contains splits if it also has a validation folder, if it also has a test folder
    with class folders in it, or if no other folder has images. Otherwise the training folder is a class.
    """
    if not place.is_dir():
        return None, None, ()
    names = class_folders(place)
    train, val, test = (_named(names, SPLIT_VALUES[split]) for split in ("train", "val", "test"))
    if not train:
        return None, None, ()
    others = [name for name in names if name not in (*train, *val, *test) and has_images(place, name)]
    has_sides = val or any(class_folders(place / name) for name in test)
    if others and not has_sides:
        return None, None, ()
    if others and not class_folders(place / train[0]):
        return None, None, ()
    left = [*train[1:], *val[1:], *others]
    words = f"{place}: not used, because training uses {train[0]}: {', '.join(map(printable, left))}"
    return place / train[0], place / val[0] if val else None, (words,) if left else ()


def _named(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return the folders with one of the wanted names, in that order, ignoring case."""
    return sorted((n for n in names if n.lower() in wanted), key=lambda n: (wanted.index(n.lower()), n))


def _shards(place: Path, split: str) -> list[Path] | None:
    """Find a split's shards by their names, as in Hugging Face repositories. None if there are class folders."""
    if not place.is_dir() or any(has_images(place, name) for name in class_folders(place)):
        return None
    found = find_split(place, split)
    return None if found is None or found[0].is_dir() else found


def _open(place: Path, single: bool) -> LabelledSet:
    if place.is_file() and _is_table(place):
        return _open_files([place], single)
    try:
        source = open_source(place, single=single)
    except UserError:
        if not place.is_dir() or class_folders(place) or not _count_images(place):
            raise
        tables = sorted(path for path in place.iterdir() if path.suffix.lower() in TABLE_SUFFIXES)
        instead = f"give the table: {tables[0]}" if tables else "give a table with the files and their labels"
        raise no_labels(place, instead) from None
    beside = _count_images(place) if source.kind == "folder" else 0
    images = "1 image is" if beside == 1 else f"{beside:,} images are"
    unused = (f"{place}: {images} in no class folder and left out",) if beside else ()
    return _in_order(LabelledSet(source, unused=unused))


def _count_images(place: Path) -> int:
    """Count the images directly in a folder."""
    with os.scandir(place) as entries:
        return sum(entry.is_file() and is_image_name(entry.name) for entry in entries)


def _open_files(files: list[Path], single: bool) -> LabelledSet:
    if all(map(_is_table, files)):
        source, tables = open_tables(files[0].parent, files, single=single)
        return _in_order(LabelledSet(source, splits_of(tables)))
    return _in_order(LabelledSet(open_source(files[0].parent, single=single)))


def _is_table(path: Path) -> bool:
    return is_csv(path) or path.suffix.lower() == ".parquet"


def _in_order(found: LabelledSet) -> LabelledSet:
    """Sort images by class and file name, so that the same images give the same file in any row order.

    Classes are numbered in the same way for folders and tables: names that are numbers are sorted by value.

    Embedded images in parquet files keep their order, in which they are read row group by row group.
    """
    if isinstance(found.source, ParquetSource):
        return found
    names, labels, classes = list(found.source.names), found.source.labels, found.source.classes
    order = sorted(range(len(names)), key=lambda i: ([classes[k] for k in classes_of(labels[i])], names[i]))
    numbered = sort_labels(classes) if found.source.kind == "folder" else classes
    return found.take(np.array(order, np.int64), numbered)
