"""Find out which `.beton` files a text, a path or a list names."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from beton_tools.base.errors import UserError
from beton_tools.base.user_files import StrPath

SUFFIX, SUBSET = ".beton", ".subset.json"
BetonPaths = StrPath | Sequence[StrPath]
"""A file, a pattern such as "train-*.beton", several of them separated by commas, or a sequence of them."""


def is_named_beton(path: Path) -> bool:
    """Return True if the name belongs to a `.beton` file, or to a subset file of one."""
    return path.name.endswith((SUFFIX, SUBSET))


def find_betons(data: BetonPaths) -> list[Path]:
    """Return the files that `data` names. Files from a pattern are sorted by name, otherwise the order is as given.

    A name that exists is never read as a pattern or a list.

    Raises:
        UserError: No file matches a pattern, a file is named twice, also by a link, or a folder is given.
    """
    entries = [entry for item in _as_sequence(data) for entry in _split(os.fspath(item))]
    paths = [path for entry in entries for path in _expand(entry)]
    # unlike Path's, it raises no error for a name that is too long
    folder = next(filter(os.path.isdir, paths), None)
    if folder is not None:
        raise UserError(
            f"{folder} is a folder, not a .beton. Write its images to one with fastft convert folder --data {folder} "
            f"--out {folder.name}.beton, in Python with beton_tools.write.convert.convert_folder"
        )
    if not paths:
        raise UserError("no .beton file is named. Give a file, or a quoted pattern such as 'train-*.beton'")
    first: dict[str, Path] = {}
    for path in paths:
        if (other := first.setdefault(os.path.realpath(path), path)) is not path:
            link = "" if other == path else f", as {other} too"  # a link, which a pattern may match beside its file
            raise UserError(f"{path}: named twice{link}. Name each file once")
    return paths


def named_files(data: str) -> list[str]:
    """Return the files that `data` names, for reports. If none of them exists any more, return the text itself."""
    try:
        return [str(path) for path in find_betons(data)]
    except UserError:
        return [data]


def exist_betons(data: BetonPaths) -> bool:
    """Return True if every file named by `data` exists."""
    try:
        return all(path.is_file() for path in find_betons(data))
    except UserError:
        return False


def is_beton_pattern(text: str) -> bool:
    """Return True if all entries in the text end in `.beton` and at least one is a pattern.

    An existing file is not a pattern.
    """
    parts = _split(text)
    return all(part.endswith(SUFFIX) for part in parts) and any(_is_pattern(part) for part in parts)


def describe_paths(data: BetonPaths) -> str:
    """Describe `data` as text for messages."""
    return ", ".join(os.fspath(item) for item in _as_sequence(data))


def _as_sequence(data: BetonPaths) -> Sequence[StrPath]:
    return [data] if isinstance(data, (str, os.PathLike)) else data


def _split(text: str) -> list[str]:
    if os.path.lexists(text):
        return [text]
    # unlike Path's, this raises no error for an unknown user
    return [os.path.expanduser(part.strip()) for part in text.split(",") if part.strip()]  # noqa: PTH111


def _is_pattern(text: str) -> bool:
    return glob.has_magic(text) and not os.path.lexists(text)


def _expand(text: str) -> list[Path]:
    if not _is_pattern(text):
        return [Path(text)]
    matches = [Path(path) for path in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207 - may be absolute
    if not matches:
        raise UserError(f"{text}: no file matches. Correct the pattern")
    return matches
