"""Which paths are photographs that must be converted; imports few modules, as most commands look at it."""

import glob
from pathlib import Path

from beton_tools.beton_paths import is_beton_pattern

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
ARCHIVE_SUFFIXES = (".tar",)


def needs_conversion(path: str | None) -> bool:
    """Return True if `data.train` or `data.val` must be converted to a .beton file: a folder, table or archive."""
    if path is None:
        return False
    if is_beton_pattern(path):
        return False
    place = Path(path).expanduser()
    is_pattern = glob.has_magic(path) and not place.exists()
    return place.is_dir() or is_pattern or place.suffix.lower() in (*TABLE_SUFFIXES, *ARCHIVE_SUFFIXES)
