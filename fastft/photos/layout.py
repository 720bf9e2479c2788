"""The layout of a set of photographs: one labelled set, or a training and a validation set.

Accepted: a folder with a folder per class; a folder with `train/` and `val/` (or `valid/`, `validation/`); a CSV or parquet
table; archives and shards as `fastft convert` takes them. `test/` is never used.
"""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from beton_tools.errors import UserError
from beton_tools.remote import RemotePath, source_path
from beton_tools.sources import Source, find_split, open_source
from beton_tools.sources.folder import class_folders, has_images
from beton_tools.sources.parquet import ParquetSource, lists_paths
from beton_tools.sources.path_table import Columns, is_csv, parquet_columns, table_source
from beton_tools.sources.subset import subset

TRAIN_FOLDERS = ("train", "training")
VAL_FOLDERS = ("val", "valid", "validation")
OTHER_FOLDERS = ("test",)


@dataclass(frozen=True)
class LabelledSet:
    """Labelled images in canonical order; `groups` and `splits` hold a value per image, or are None."""

    source: Source
    columns: Columns = field(default_factory=Columns)

    def take(self, indices: np.ndarray, classes: Sequence[str] | None = None) -> "LabelledSet":
        """The images at `indices`, labelled by `classes` (default: as they are)."""
        chosen = indices.tolist()
        groups, splits = self.columns.groups, self.columns.splits
        return LabelledSet(
            subset(self.source, indices, self.source.classes if classes is None else classes),
            Columns(
                None if splits is None else [splits[i] for i in chosen],
                None if groups is None else [groups[i] for i in chosen],
            ),
        )

    def __len__(self) -> int:
        return len(self.source.names)


def open_sets(path: str) -> tuple[LabelledSet, LabelledSet | None]:
    """The training set at `path`, and its validation set if it has one.

    Raises:
        UserError: no such path, no images, or an unknown layout.
    """
    _check_is_local(path)
    place = Path(path).expanduser()
    _check_exists(place)
    train, val = _split_folders(place)
    if train is not None:
        return _open(train), None if val is None else _open(val)
    shards = _shards(place, "train")
    if shards is not None:
        val_shards = _shards(place, "val")
        return _open_files(shards), None if val_shards is None else _open_files(val_shards)
    whole = _open(place)
    splits = whole.columns.splits
    if splits is None:
        return whole, None
    parts = {split: np.flatnonzero([s == split for s in splits]) for split in ("train", "val")}
    if not len(parts["train"]):
        raise UserError(f"{path}: no row is of the split 'train'; correct the split column")
    return whole.take(parts["train"]), whole.take(parts["val"]) if len(parts["val"]) else None


def _check_is_local(path: str) -> None:
    if isinstance(source_path(path), RemotePath):
        raise UserError(
            f"{path}: a training reads local files; convert it first (`fastft convert folder --data {path} --out "
            "photos.beton`), then give --data.train=photos.beton"
        )


def _check_exists(path: Path) -> None:
    if not os.path.lexists(path) and not glob.has_magic(str(path)):
        raise UserError(
            f"{path}: no such file or folder; give a folder with a folder per class, a CSV or parquet table, or a .beton"
        )


def _split_folders(place: Path) -> tuple[Path | None, Path | None]:
    """The folders of the training and the validation set, if `place` contains splits and no classes."""
    if not place.is_dir():
        return None, None
    names = class_folders(place)
    by_lower = {name.lower(): name for name in names}
    splits = {*TRAIN_FOLDERS, *VAL_FOLDERS, *OTHER_FOLDERS}
    train = next((by_lower[n] for n in TRAIN_FOLDERS if n in by_lower), None)
    if train is None or not by_lower.keys() <= splits or not class_folders(place / train):
        return None, None
    val = next((by_lower[n] for n in VAL_FOLDERS if n in by_lower), None)
    return place / train, None if val is None else place / val


def _shards(place: Path, split: str) -> list[Path] | None:
    """The shards of a split by their names, as in Hugging Face repositories; None if there are class folders."""
    if not place.is_dir() or any(has_images(place, name) for name in class_folders(place)):
        return None
    found = find_split(place, split)
    return None if found is None or found[0].is_dir() else found


def _open(place: Path) -> LabelledSet:
    if place.is_file() and (is_csv(place) or place.suffix == ".parquet"):
        return _open_files([place])
    return _in_order(LabelledSet(open_source(place)))


def _open_files(files: list[Path]) -> LabelledSet:
    if all(map(is_csv, files)) or (files[0].suffix == ".parquet" and lists_paths(files[0])):
        return _in_order(LabelledSet(*table_source(files)))
    if files[0].suffix == ".parquet":
        from beton_tools.sources.parquet import parquet_source

        return LabelledSet(parquet_source(files[0].parent, files), parquet_columns(files))
    return _in_order(LabelledSet(open_source(files[0].parent)))


def _in_order(found: LabelledSet) -> LabelledSet:
    """Images by class and name, whatever the order of the rows: the same images give the same file in every layout.

    Embedded images of parquet files keep their order, in which they are read row group by row group.
    """
    if isinstance(found.source, ParquetSource):
        return found
    names, labels = list(found.source.names), found.source.labels.tolist()
    order = sorted(range(len(names)), key=lambda i: (labels[i], names[i]))
    return found.take(np.array(order, np.int64))
