"""Class folders as torchvision's ImageFolder reads them, except that hidden files and folders are ignored."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from beton_tools.base.console import by_suffix
from beton_tools.base.errors import UserError
from beton_tools.base.image_formats import is_image_name
from beton_tools.base.names import Names, composed
from beton_tools.sources.base import FileSource, check_classes, check_labels, is_number, labels_of
from beton_tools.sources.side_files import class_names_of

MAX_DIGITS = 7  # longest folder number. The format holds at most a million classes


def class_folders(root: Path) -> tuple[str, ...]:
    """Return the names of the folders in `root` that are not hidden, sorted."""
    with os.scandir(root) as entries:
        return tuple(sorted(e.name for e in entries if is_folder(e) and not e.name.startswith(".")))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return True if an entry is a folder or a link to one.

    For a link to itself the result is False, so that reading it reports the error.
    """
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def folder_source(root: Path, classes: Sequence[str] | None = None, class_indices: bool = False) -> FileSource:
    """Open images at `root/<class>/**/<image>`, with classes in sorted order, and images sorted by path within a class.

    A link to a folder above itself is listed as an image that cannot be read.

    Args:
        classes: Class list that the labels index (for a val folder: the training classes). None uses the folders.
        class_indices: Whether the folders' names are labels: images in folder 7 have the label 7 (ImageNet-V2).
    """
    folders = class_folders(root)
    if class_indices:
        label_of = _labels_of_folders(root, folders)
        classes = check_labels(root, max(label_of.values(), default=-1), classes)
    else:
        hint = ", or give --class-indices if the folders are numbers of classes"
        advice = f"Remove it{hint if all(map(is_number, folders)) else ''}"
        classes = check_classes(root, dict.fromkeys(map(composed, folders)), classes, advice)
        position = labels_of(classes)
        label_of = {name: position[composed(name)] for name in folders}
    names: list[str] = []
    labels: list[int] = []
    left_out: Counter[str] = Counter()
    for name in folders:
        files = sorted(_files_below(root, name))
        images = [path for path, is_loop in files if is_loop or _is_image(path)]
        names += images
        labels += [label_of[name]] * len(images)
        left_out.update(_other_suffixes(files))
    if not names:
        others = f" (but {by_suffix(left_out)})" if left_out else ""
        raise UserError(f"{root}: no images in class folders below it{others}. Give a folder with one folder per class")
    readable = class_names_of(classes, root)
    return FileSource(
        "folder", root, tuple(classes), readable, np.array(labels), Names.of(names), left_out=dict(left_out)
    )


def _labels_of_folders(root: Path, names: Sequence[str]) -> dict[str, int]:
    """Map folder names that are numbers to labels."""
    label_of: dict[str, int] = {}
    for name in names:
        if not is_number(name) or len(name) > MAX_DIGITS:
            raise UserError(
                f"{root}: folder {name!r} is not a class number. Omit --class-indices, or remove the folder"
            )
        label_of[name] = int(name)
    if len(set(label_of.values())) < len(names):
        raise UserError(f"{root}: two folders have the same number, such as 7 and 007. Rename or remove one")
    return label_of


def has_images(root: Path, folder: str) -> bool:
    """Return True if `root/folder` contains an image at any depth."""
    return any(_is_image(path) for path, _ in _files_below(root, folder))


def images_below(root: Path, left_out: Counter[str] | None = None) -> list[str]:
    """Return the paths of the images at any depth, relative to `root` and sorted, with the same rules as class folders.

    Args:
        left_out: Counts the other files, by suffix.
    """
    files = list(_files_below(root, "."))
    if left_out is not None:
        left_out.update(_other_suffixes(files))
    return sorted(path.removeprefix("./") for path, is_loop in files if not is_loop and _is_image(path))


def _other_suffixes(files: Sequence[tuple[str, bool]]) -> Iterator[str]:
    """Return the suffix of each file that is not an image. `files` is what `_files_below` yields."""
    return (Path(path).suffix.lower() for path, is_loop in files if not is_loop and not _is_image(path))


def _is_image(path: str) -> bool:
    return is_image_name(path.rpartition("/")[2])


def _files_below(root: Path, folder: str) -> Iterator[tuple[str, bool]]:
    """Yield (path below `root`, is a link to a parent folder) for each file or such link in `folder`, at any depth.

    Hidden files and folders, such as .ipynb_checkpoints, are left out.
    """
    real_root = os.path.realpath(root)
    above = tuple(map(str, Path(real_root).parents))
    stack = [(folder, above if folder == "." else (*above, real_root))]
    while stack:
        folder, parents = stack.pop()
        real = os.path.realpath(root / folder)
        if real in parents:  # following the link would never end
            yield folder, True
            continue
        with os.scandir(real) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if is_folder(entry):
                    stack.append((f"{folder}/{entry.name}", (*parents, real)))
                else:
                    yield f"{folder}/{entry.name}", False
