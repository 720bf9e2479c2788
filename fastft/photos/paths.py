"""Which paths are photographs that must be converted; imports no library, as most commands look at it."""

import glob
from pathlib import Path

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
ARCHIVE_SUFFIXES = (".tar",)


def needs_conversion(path: str | None) -> bool:
    """Return True if `data.train` or `data.val` must be converted to a .beton file: a folder, table or archive."""
    if path is None:
        return False
    place = Path(path).expanduser()
    is_pattern = glob.has_magic(path) and not place.exists()
    return place.is_dir() or is_pattern or place.suffix.lower() in (*TABLE_SUFFIXES, *ARCHIVE_SUFFIXES)
