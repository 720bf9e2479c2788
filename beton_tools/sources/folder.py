"""Images in folders: one folder per class, as torchvision's ImageFolder reads them, but for what is hidden."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from beton_tools.console import by_suffix
from beton_tools.errors import UserError
from beton_tools.names import Names
from beton_tools.sources.base import IMAGE_SUFFIXES, FileSource
from beton_tools.sources.wnids import class_names_of


def is_image_name(name: str) -> bool:
    """False for hidden files too: macOS archives carry a `._x.JPEG` beside each `x.JPEG`."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def class_folders(root: Path) -> tuple[str, ...]:
    with os.scandir(root) as entries:
        return tuple(sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(".")))


def folder_source(root: Path, classes: Sequence[str] | None = None) -> FileSource:
    """`root/<class>/**/<image>`; classes in sorted order, images by path within a class.

    classes: fixes the labels (a val folder must count as its train folder does). Raises UserError on a class
    that is not among them, and when there is no image at all.
    """
    found = class_folders(root)
    classes = tuple(classes) if classes is not None else found
    label_of = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in found if name not in label_of]
    if unknown:
        raise UserError(
            f"{root}: class {unknown[0]!r} is not among the {len(classes)} training classes; remove it"
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
    """Whether `root/folder` holds an image at any depth."""
    return any(map(_is_image, _files_below(root, folder)))


def _is_image(path: str) -> bool:
    return is_image_name(path.rpartition("/")[2])


def _files_below(root: Path, folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Whatever is not hidden, such as .ipynb_checkpoints.

    above: real paths of the folders around it, to which a link in it would lead for ever.
    """
    real = os.path.realpath(root / folder)
    if real in above:
        raise UserError(f"{root / folder}: a link to a folder around it; remove it")
    with os.scandir(real) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _files_below(root, f"{folder}/{entry.name}", (*above, real))
            else:
                yield f"{folder}/{entry.name}"
