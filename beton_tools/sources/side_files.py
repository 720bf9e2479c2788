"""Optional files beside the images (labels, classes and class names), and readable names for ImageNet's wnids."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from beton_tools.base.errors import UserError
from beton_tools.base.names import composed, escape_undecodable
from beton_tools.base.user_files import read_user_file
from beton_tools.sources.remote import RemotePath, SourcePath, open_source_file
from beton_tools.sources.remote_errors import AccessDenied

MAX_LABELS_BYTES = 256 << 20  # labels for five million images. ImageNet's validation labels take 2 MB
_PARENTS = 4
_LINE_END = re.compile("\r\n|\r|\n")  # `str.splitlines` ends lines at a form feed and at ten other characters too
_WNID = re.compile(r"n\d{8}")
_KAGGLE_LIST = "LOC_synset_mapping.txt"  # "n01440764 tench, Tinca tinca", in Kaggle's ILSVRC download
_TIMM_LISTS = "data/_info"  # inside timm, which is slow to import
_TIMM_NAMES = "imagenet_synset_to_lemma.txt"  # like Kaggle's, with a tab
_TIMM_WNIDS = "imagenet_synsets.txt"  # one on each line


def folder_and_parents(folder: SourcePath) -> list[SourcePath]:
    """Return the folders in which files beside the images are searched for: this one and four of its parents."""
    if isinstance(folder, RemotePath):
        return [folder, *folder.parents[:_PARENTS]]
    return [folder, *islice(folder.resolve().parents, _PARENTS)]


def is_present(path: SourcePath) -> bool:
    """Return True if there is anything but a folder at `path`, and False if access is denied.

    A FIFO or device counts as present, so that reading it is refused.

    Raises:
        UserError: The server cannot be reached, or a package is missing.
    """
    if isinstance(path, RemotePath):
        with suppress(AccessDenied):
            return path.is_file()
        return False
    return os.path.exists(path) and not os.path.isdir(path)  # noqa: PTH110, PTH112 - Path's raise PermissionError


def read_side_file(path: SourcePath, max_bytes: int, expected: str) -> bytes:
    """Read a regular file with at most `max_bytes` bytes.

    Raises:
        UserError: The file cannot be read, is not a regular file, or is too large.
    """
    if not isinstance(path, RemotePath):
        return read_user_file(path, max_bytes, expected)
    with open_source_file(path, expected) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UserError(f"{path}: larger than the limit of {max_bytes:,} bytes. Give {expected}")
    return data


def read_lines(path: SourcePath) -> list[str] | None:
    """Return a text file's lines without blank ones at its end, or None if it does not exist.

    Bytes that are not UTF-8 become surrogates, as in file names.
    """
    if not is_present(path):
        return None
    text = read_side_file(path, MAX_LABELS_BYTES, "a text file").decode("utf-8-sig", "surrogateescape")
    return _LINE_END.split(text) if (text := text.rstrip()) else []


def read_class_list(path: SourcePath) -> list[str] | None:
    """Return a file's class names, one per line, or None if it does not exist or is empty.

    Raises:
        UserError: A name is missing before the last one, or is not UTF-8 text.
    """
    names = [composed(line.strip()) for line in read_lines(path) or []]
    if any(name != escape_undecodable(name) for name in names):
        raise UserError(f"{path}: a class name is not UTF-8 text. Save the list as UTF-8")
    if "" in names:
        raise UserError(f"{path}, line {names.index('') + 1}: no class name. Write one, or remove the line")
    return names or None


# wnids ----------------------------------------------------------------------------------------------------------------


def is_wnid(name: str) -> bool:
    """Return True if a name looks like a WordNet id, such as n01440764."""
    return _WNID.fullmatch(name) is not None


def class_names_of(classes: Sequence[str], root: SourcePath) -> tuple[str, ...] | None:
    """Return readable names if all classes are wnids and one list has all of them, otherwise None.

    The list lies near `root`, or is timm's.
    """
    if not classes or not all(is_wnid(c) for c in classes):
        return None
    for path in [*(folder / _KAGGLE_LIST for folder in folder_and_parents(root)), *_timm_list(_TIMM_NAMES)]:
        rows = (line.split(maxsplit=1) for line in read_lines(path) or [])
        names = {row[0]: row[1].strip() for row in rows if len(row) == 2}
        if all(c in names for c in classes):
            return tuple(names[c] for c in classes)
    return None


def imagenet_wnids() -> tuple[str, ...]:
    """Return ILSVRC2012's 1,000 wnids by label, from timm's list. The result is empty without timm."""
    return tuple(wnid for path in _timm_list(_TIMM_WNIDS) for wnid in read_lines(path) or ())


def _timm_list(name: str) -> list[Path]:
    timm = find_spec("timm")
    if timm is None or timm.origin is None:
        return []
    return [Path(timm.origin).parent / _TIMM_LISTS / name]
