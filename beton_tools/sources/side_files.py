"""Optional files beside the images: lists of labels, classes and class names."""

from __future__ import annotations

import os
from pathlib import Path

from beton_tools.user_files import read_user_file

MAX_BYTES = 256 << 20  # the labels of five million images; those of ImageNet's validation set take 2 MB


def is_present(path: Path) -> bool:
    """Whether there is anything but a folder at `path`. A FIFO or device counts, so that reading it is refused."""
    return os.path.exists(path) and not os.path.isdir(path)  # noqa: PTH110, PTH112 - Path's raise PermissionError


def read_lines(path: Path) -> list[str] | None:
    """The lines of a text file, None if it does not exist. Bytes that are not UTF-8 become surrogates, as in file names.

    Raises:
        UserError: it cannot be read, is not a regular file, or too large.
    """
    if not is_present(path):
        return None
    return read_user_file(path, MAX_BYTES, "a text file").decode("utf-8", "surrogateescape").splitlines()
