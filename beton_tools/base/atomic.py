"""Files that appear under their name only when they are complete."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from beton_tools.base.errors import UserError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it is renamed to `path` at the end, or removed after an error."""
    # the suffix stays, because libraries choose a format by it
    partial = path.with_name(f".partial-{path.name}")
    partial.unlink(missing_ok=True)  # left by a killed process; anything but a regular file could block
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: Path, *, suffixes: Sequence[str] = (), makes_directories: bool = False) -> None:
    """Refuse a path that cannot be written, before the work whose result it is for.

    suffixes: what its name must end in, so that a mistyped command does not replace an image or a log; () allows any.
    makes_directories: missing directories above it will be made.

    Raises:
        UserError: it is a directory, a link or a device, it has another suffix, or its directory is missing or not writable.
    """
    folder = path.parent
    if makes_directories:
        folder = next(p for p in path.absolute().parents if p.exists())
    if path.is_dir():
        reason = "it is a directory"
    elif path.is_symlink() or (path.exists() and not path.is_file()):
        reason = "it is a link or no regular file"
    elif suffixes and path.suffix.lower() not in suffixes:
        reason = f"its name should end in {' or '.join(suffixes)}"
    elif not folder.exists():
        reason = f"{folder} does not exist"
    elif not folder.is_dir():
        reason = f"{folder} is not a directory"
    elif not os.access(folder, os.W_OK):
        reason = f"no permission to write into {folder}"
    else:
        return
    raise UserError(f"{path}: cannot be written ({reason}); give another path")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file. Bytes of paths that are not UTF-8 are written as escapes (`\\udcXX`)."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
