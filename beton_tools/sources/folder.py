"""Class folders as torchvision's ImageFolder reads them, except that hidden files and folders are ignored."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from beton_tools.console import by_suffix
from beton_tools.errors import UserError
from beton_tools.image_formats import is_image_name
from beton_tools.names import Names
from beton_tools.sources.base import FileSource
from beton_tools.sources.wnids import class_names_of


def class_folders(root: Path) -> tuple[str, ...]:
    """Names of the folders in `root` that are not hidden, sorted."""
    with os.scandir(root) as entries:
        return tuple(sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(".")))


def folder_source(root: Path, classes: Sequence[str] | None = None) -> FileSource:
    """Images at `root/<class>/**/<image>`; classes in sorted order, images by path within a class.

    Args:
        classes: class list that the labels index (for a val folder: the classes of train); None takes the folders.

    Raises:
        UserError: a class folder that is not in `classes`, no image at all, or a link to a parent folder.
    """
    found = class_folders(root)
    classes = tuple(classes) if classes is not None else found
    label_of = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in found if name not in label_of]
    if unknown:
        raise UserError(
            f"{root}: class {unknown[0]!r} is not one of the {len(classes)} training classes; remove it"
        )
    names: list[str] = []
    labels: list[int] = []
    left_out: Counter[str] = Counter()
    for name in found:
        files = sorted(_files_below(root, name))
        images = [file for file in files if _is_image(file)]
        names += images
        labels += [label_of[name]] * len(images)
        left_out.update(Path(file).suffix.lower() for file in files if not _is_image(file))
    if not names:
        others = f" (but {by_suffix(left_out)})" if left_out else ""
        raise UserError(
            f"{root}: no images in class folders below it{others}; give a folder with one folder per class"
        )
    return FileSource(
        "folder",
        root,
        classes,
        class_names_of(classes, root),
        np.array(labels),
        Names.of(names),
        left_out=dict(left_out),
    )


def has_images(root: Path, folder: str) -> bool:
    """Whether `root/folder` contains an image at any depth."""
    return any(map(_is_image, _files_below(root, folder)))


def _is_image(path: str) -> bool:
    return is_image_name(path.rpartition("/")[2])


def _files_below(root: Path, folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Paths below `root` of the files in `folder` at any depth. Hidden ones, as in .ipynb_checkpoints, are left out.

    above: real paths of the parent folders; following a link to one of them would never end.
    """
    real = os.path.realpath(root / folder)
    if real in above:
        raise UserError(f"{root / folder}: a link to one of its parent folders; remove it")
    with os.scandir(real) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _files_below(root, f"{folder}/{entry.name}", (*above, real))
            else:
                yield f"{folder}/{entry.name}"
