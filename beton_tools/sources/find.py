"""Recognise a dataset's layout (class folders, flat folder, tars, parquet, CSV) and open it."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import overload

from beton_tools.base.errors import UserError
from beton_tools.base.image_formats import is_image_name
from beton_tools.sources.base import Source
from beton_tools.sources.flat import flat_source, val_tar_source
from beton_tools.sources.folder import class_folders, folder_source, has_images, is_folder
from beton_tools.sources.parquet import lists_paths, open_tables
from beton_tools.sources.path_table import is_csv, splits_of
from beton_tools.sources.remote import (
    AnyPath,
    RemotePath,
    SourcePath,
    expand_pattern,
    has_pattern,
    open_source_file,
    source_path,
)
from beton_tools.sources.side_files import is_present, is_wnid
from beton_tools.sources.tars import class_tars_source, members, train_tar_source, webdataset_source

_SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "validation", "valid")}
# the folder itself, and the layout of Kaggle's archive
_SPLIT_PARENTS = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
_SHARD_SUFFIXES = (".parquet", ".tar")
_SHARD_FOLDERS = ("", "data")  # Hugging Face repositories store shards in data/

SPLITS = tuple(_SPLIT_NAMES)


def open_source(
    path: AnyPath,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    class_indices: bool = False,
    single: bool = False,
) -> Source:
    """Open the labelled images at `path`: a folder, an archive, a table, or a pattern of shards ("shards/train-*.tar").

    A CSV or parquet table may list image paths. Its split and group columns are not used. Tars and parquet files may be
    at URLs (https://, s3://, gs://, hf://), whose patterns may have braces too ("train-{000..146}.tar").

    Args:
        split: "train" or "val" if the dataset has both below `path`. None opens `path` itself.
        classes: Class list that the labels index (for val: the training classes). None derives it from the images. Images
            are matched with `KnownClasses` by id, then by name.
        class_indices: Whether class folders' names are labels, as in ImageNet-V2.
        single: Whether a table's label cell such as "cat;dog" is one class name. Otherwise it holds several classes,
            unless `classes` contains the whole cell.

    Raises:
        UserError: There are no images, the layout is unknown, an archive is damaged, or a class is not in `classes`.
    """
    path = source_path(path)
    if class_indices and not (isinstance(path, Path) and path.is_dir()):
        raise UserError(f"{path}: not a folder. --class-indices needs a folder with one folder per class")
    if split is not None:
        places = find_split(path, split)
        if places is None:
            raise UserError(f"{path}: no {split} images found. See `fastft convert imagenet --help` for the layouts")
        return _open(path, places, classes)
    matches = _matches(path)
    if matches is None and not path.exists():
        raise UserError(f"{path}: no such file or folder. Set --data to the images")
    if matches is None:
        return _open(path, [path], classes, single, class_indices)
    if not matches:
        raise UserError(f"{path}: no file matches. Correct the pattern")
    return _open(matches[0].parent, matches, classes, single)


def _matches(path: SourcePath) -> Sequence[SourcePath] | None:
    """Return the files that a pattern stands for, or None if the path is not a pattern."""
    if isinstance(path, RemotePath):
        return expand_pattern(path) if has_pattern(path) else None
    if path.exists() or not glob.has_magic(str(path)):
        return None
    return [Path(p) for p in sorted(glob.glob(str(path)))]  # noqa: PTH207 - the pattern may be absolute


@overload
def find_split(root: Path, split: str) -> list[Path] | None: ...
@overload
def find_split(root: SourcePath, split: str) -> Sequence[SourcePath] | None: ...
def find_split(root: SourcePath, split: str) -> Sequence[SourcePath] | None:
    """Return a split's folder, archive or shards below `root`, or None if there are none.

    Raises:
        UserError: `root` is not a folder.
    """
    if not root.is_dir():
        hint = "the folder with the dataset"
        if isinstance(root, RemotePath):
            hint += ", s3://BUCKET/FOLDER for example. For web servers use `fastft convert folder`"
        raise UserError(f"{root}: no such folder. Set --data to {hint}")
    names = _SPLIT_NAMES[split]
    for candidate in (root / parent / name for parent in _SPLIT_PARENTS for name in names):
        if candidate.is_dir():
            return [candidate]
    tar = root / f"ILSVRC2012_img_{split}.tar"
    if is_present(tar):
        return [tar]
    for folder in (root / name for name in _SHARD_FOLDERS):
        for suffix in _SHARD_SUFFIXES:
            # such as train-00000-of-00294.parquet or val_000.tar
            shards = [p for p in _files_in(folder, suffix) if set(names) & set(re.split("[-_.]", p.name))]
            if shards:
                return shards
    return None


def _files_in(folder: SourcePath, suffix: str) -> Sequence[SourcePath]:
    """Return the files in a folder or below a prefix whose names end in `suffix`, sorted."""
    pattern = f"*{suffix}"
    if isinstance(folder, RemotePath):
        return expand_pattern(folder / pattern)
    return sorted(folder.glob(pattern))


def _open(
    root: SourcePath,
    paths: Sequence[SourcePath],
    classes: Sequence[str] | None,
    single: bool = False,
    class_indices: bool = False,
) -> Source:
    try:
        if len(paths) == 1 and paths[0].is_dir():
            folder = paths[0]
            if isinstance(folder, RemotePath):
                return _open_prefix(folder, classes, single)
            if class_indices:
                return folder_source(folder, classes, class_indices=True)
            return _open_folder(folder, classes, single)
        if all(path.suffix == ".parquet" or (isinstance(path, Path) and is_csv(path)) for path in paths):
            return _open_tables(root, paths, classes, single)
        if all(path.suffix == ".tar" for path in paths):
            return _open_tars(root, paths, classes)
    except OSError as error:
        raise UserError(f"{error.filename or root}: cannot be read ({error.strerror or error})") from error
    raise UserError(f"{paths[0]}: not a folder, .tar, .parquet or .csv. Unpack it, or convert it to one of these")


def _open_prefix(folder: RemotePath, classes: Sequence[str] | None, single: bool) -> Source:
    for suffix in _SHARD_SUFFIXES:
        if shards := _files_in(folder, suffix):
            return _open(folder, shards, classes, single)
    raise UserError(
        f"{folder}: no .parquet or .tar in it. Folders with images are read from local disks only. Pack them into tars"
    )


def _open_folder(folder: Path, classes: Sequence[str] | None, single: bool) -> Source:
    with os.scandir(folder) as entries:
        files = sorted(e.name for e in entries if not is_folder(e) and not e.name.startswith("."))
    for suffix in _SHARD_SUFFIXES:
        shards = [folder / name for name in files if name.endswith(suffix)]
        if not shards:
            continue
        if not _has_class_images(folder):
            return _open(folder, shards, classes, single)
        archive = next((path for path in shards if not _is_path_table(path)), None)
        if archive is not None:
            raise UserError(
                f"{folder}: contains both class folders and archives ({archive.name}). Move one of the two elsewhere"
            )
    num_direct = sum(map(is_image_name, files))
    if num_direct and not _has_class_images(folder):
        return flat_source(folder, classes)
    _check_not_splits(folder)
    source = folder_source(folder, classes)
    if num_direct > len(source.names):
        raise UserError(
            f"{folder}: contains {num_direct} images directly and {len(source.names)} in class folders. "
            "Move one of the two elsewhere"
        )
    return source


def _is_path_table(path: Path) -> bool:
    """Return True if the file is a Parquet table that lists image paths. A damaged file gives False."""
    with suppress(UserError):
        return path.suffix == ".parquet" and lists_paths(path)
    return False


def _has_class_images(folder: Path) -> bool:
    return any(has_images(folder, name) for name in class_folders(folder))


def _open_tables(root: SourcePath, files: Sequence[SourcePath], classes: Sequence[str] | None, single: bool) -> Source:
    source, tables = open_tables(root, files, classes, single)
    if source.kind != "table":  # a split column beside embedded images is free text
        return source
    if len(splits := sorted(set(splits_of(tables) or ()))) > 1:
        raise UserError(
            f"{files[0]}: lists images of {', '.join(splits)}. Write a table for each of them (fastft train photos reads "
            "such a table as it is)"
        )
    return source


def _open_tars(root: SourcePath, tars: Sequence[SourcePath], classes: Sequence[str] | None) -> Source:
    if all(is_wnid(path.stem) for path in tars):
        return class_tars_source(root, tars, classes)
    names = _first_names(tars[0], 2)
    if names[0].endswith(".tar"):
        return train_tar_source(tars[0], classes)
    if all(is_image_name(PurePath(name).name) for name in names) and len(tars) == 1:
        return val_tar_source(tars[0], classes)
    return webdataset_source(root.parent if root == tars[0] else root, tars, classes)


def _first_names(tar: SourcePath, count: int) -> list[str]:
    with open_source_file(tar, "a .tar file") as file:
        names = [member.name for member, _ in zip(members(file, tar), range(count), strict=False)]
    if not names:
        raise UserError(f"{tar}: the archive is empty. Download it again")
    return names


def _check_not_splits(folder: Path) -> None:
    """Refuse a folder that contains train/ and val/, because they would become two classes."""
    folders = class_folders(folder)
    splits = {"test", *_SPLIT_NAMES["train"], *_SPLIT_NAMES["val"]}
    if folders and all(name.lower() in splits and class_folders(folder / name) for name in folders):
        raise UserError(
            f"{folder}: contains splits ({', '.join(folders)}), not classes. Give one of them, or use "
            "`fastft convert imagenet`"
        )
