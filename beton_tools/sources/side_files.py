"""Optional files beside the images: lists of labels, classes and class names."""

from __future__ import annotations

import os
from itertools import islice

from beton_tools.base.errors import UserError
from beton_tools.base.user_files import read_user_file
from beton_tools.sources.remote import RemotePath, SourcePath
from beton_tools.sources.remote_files import open_source_file

MAX_BYTES = 256 << 20  # the labels of five million images; those of ImageNet's validation set take 2 MB
_PARENTS = 4


def folder_and_parents(folder: SourcePath) -> list[SourcePath]:
    """A folder and four of its parents, in which files beside the images are looked for."""
    if isinstance(folder, RemotePath):
        return [folder, *folder.parents[:_PARENTS]]
    return [folder, *islice(folder.resolve().parents, _PARENTS)]


def is_present(path: SourcePath) -> bool:
    """Whether there is anything but a folder at `path`. A FIFO or device counts, so that reading it is refused."""
    if isinstance(path, RemotePath):
        return path.is_file()
    return os.path.exists(path) and not os.path.isdir(path)  # noqa: PTH110, PTH112 - Path's raise PermissionError


def read_side_file(path: SourcePath, max_bytes: int, expected: str) -> bytes:
    """The contents of a regular file of at most `max_bytes` bytes.

    Raises:
        UserError: it cannot be read, is not a regular file, or too large.
    """
    if not isinstance(path, RemotePath):
        return read_user_file(path, max_bytes, expected)
    with open_source_file(path, expected) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UserError(f"{path}: larger than the limit of {max_bytes:,} bytes; give {expected}")
    return data


def read_lines(path: SourcePath) -> list[str] | None:
    """The lines of a text file, None if it does not exist. Bytes that are not UTF-8 become surrogates, as in file names.

    Raises:
        UserError: it cannot be read, is not a regular file, or too large.
    """
    if not is_present(path):
        return None
    return read_side_file(path, MAX_BYTES, "a text file").decode("utf-8", "surrogateescape").splitlines()
