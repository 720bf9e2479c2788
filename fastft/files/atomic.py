"""Files that appear under their name when they are complete."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Where to write instead of `path`, which takes its place at the end; after an error nothing of it is left."""
    partial = path.with_name(
        f".partial-{path.name}"
    )  # of the same suffix, by which libraries choose a format
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")
