"""Files that appear under their name only when they are complete."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file. Bytes of paths that are not UTF-8 are written as escapes (`\\udcXX`)."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
