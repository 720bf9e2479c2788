"""Optional files beside the images: lists of labels, classes and class names; readable names of ImageNet's wnids."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from beton_tools.base.errors import UserError
from beton_tools.base.user_files import read_user_file
from beton_tools.sources.remote import AccessDenied, RemotePath, SourcePath, open_source_file

MAX_BYTES = 256 << 20  # the labels of five million images; those of ImageNet's validation set take 2 MB
_PARENTS = 4
_WNID = re.compile(r"n\d{8}")
_KAGGLE_LIST = "LOC_synset_mapping.txt"  # "n01440764 tench, Tinca tinca", in the ILSVRC download of Kaggle
_TIMM_LISTS = "data/_info"  # of timm, which is slow to import
_TIMM_NAMES = "imagenet_synset_to_lemma.txt"  # as Kaggle's, with a tab
_TIMM_WNIDS = "imagenet_synsets.txt"  # one on each line


def folder_and_parents(folder: SourcePath) -> list[SourcePath]:
    """A folder and four of its parents, in which files beside the images are looked for."""
    if isinstance(folder, RemotePath):
        return [folder, *folder.parents[:_PARENTS]]
    return [folder, *islice(folder.resolve().parents, _PARENTS)]


def is_present(path: SourcePath) -> bool:
    """True if there is anything but a folder at `path`. A FIFO or device counts, so that reading it is refused.

    False if access is denied. Raises UserError: the server cannot be reached, or a package is missing.
    """
    if isinstance(path, RemotePath):
        with suppress(AccessDenied):
            return path.is_file()
        return False
    return os.path.exists(path) and not os.path.isdir(path)  # noqa: PTH110, PTH112 - Path's raise PermissionError


def read_side_file(path: SourcePath, max_bytes: int, expected: str) -> bytes:
    """The contents of a regular file of at most `max_bytes` bytes.

    Raises UserError: it cannot be read, is not a regular file, or too large.
    """
    if not isinstance(path, RemotePath):
        return read_user_file(path, max_bytes, expected)
    with open_source_file(path, expected) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UserError(f"{path}: larger than the limit of {max_bytes:,} bytes; give {expected}")
    return data


def read_lines(path: SourcePath) -> list[str] | None:
    """The lines of a text file, None if it does not exist. Bytes that are not UTF-8 become surrogates, as in file names."""
    if not is_present(path):
        return None
    return read_side_file(path, MAX_BYTES, "a text file").decode("utf-8", "surrogateescape").splitlines()


# wnids ----------------------------------------------------------------------------------------------------------------


def is_wnid(name: str) -> bool:
    """True if a name has the form of a WordNet id, such as n01440764."""
    return _WNID.fullmatch(name) is not None


def class_names_of(classes: Sequence[str], root: SourcePath) -> tuple[str, ...] | None:
    """Readable names if all classes are wnids and one list (near `root`, or timm's) has all of them; otherwise None."""
    if not classes or not all(is_wnid(c) for c in classes):
        return None
    for path in [*(folder / _KAGGLE_LIST for folder in folder_and_parents(root)), *_timm_list(_TIMM_NAMES)]:
        rows = (line.split(maxsplit=1) for line in read_lines(path) or [])
        names = {row[0]: row[1].strip() for row in rows if len(row) == 2}
        if all(c in names for c in classes):
            return tuple(names[c] for c in classes)
    return None


def imagenet_wnids() -> tuple[str, ...]:
    """The 1,000 wnids of ILSVRC2012 by label, from timm's list; empty without timm."""
    return tuple(wnid for path in _timm_list(_TIMM_WNIDS) for wnid in read_lines(path) or ())


def _timm_list(name: str) -> list[Path]:
    timm = find_spec("timm")
    if timm is None or timm.origin is None:
        return []
    return [Path(timm.origin).parent / _TIMM_LISTS / name]
