"""The folder in which Numba caches compiled code: a separate one for each version of the sources.

Numba recompiles a cached function when its own file has changed, but not when a function that it calls has changed in
another file: after an update, code of the old version would run. With a folder per version, an update starts with an empty
cache.
"""

import hashlib
import os
import shutil
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from beton_tools.base.jit_checksums import check_cache_files

KEPT = 3  # folders of earlier versions, so that switching between branches does not compile again each time
PACKAGES = ("beton_tools", "fastft/augment", "fastft/bench", "fastft/data")  # with compiled functions


def use_own_cache() -> None:
    """Set Numba's cache folder, unless NUMBA_CACHE_DIR is set, and check its files. Call before anything is compiled."""
    check_cache_files()
    if "NUMBA_CACHE_DIR" in os.environ:
        return
    folder = _folder_of(fingerprint(Path(__file__).parents[2]))
    if folder is None:
        return  # Numba uses the folders of the sources
    os.environ["NUMBA_CACHE_DIR"] = str(folder)  # child processes use the same
    if "numba" in sys.modules:
        sys.modules["numba"].core.config.CACHE_DIR = str(folder)
    with suppress(FileNotFoundError):  # another process that starts now deletes them too
        for old in sorted(folder.parent.iterdir(), key=lambda f: f.stat().st_mtime)[: -KEPT - 1]:
            shutil.rmtree(old, ignore_errors=True)


def _folder_of(state: str) -> Path | None:
    """A writable folder for this version of the sources; None if there is none."""
    for home in (_home_cache, _temporary_cache):
        try:
            folder = home() / state
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder)
        except (OSError, RuntimeError):  # not writable or full; expanduser's RuntimeError: no home directory
            continue
        return folder
    return None


def _home_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fastft" / "numba"


def _temporary_cache() -> Path:
    """A folder that only this user can write to, since code that lies there is run.

    Raises:
        PermissionError: the folder exists and others can write to it, or own it.
    """
    folder = Path(tempfile.gettempdir()) / f"fastft-numba-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} can be written to by other users")
    return folder


def fingerprint(root: Path) -> str:
    """Hash of the names, sizes and modification times of the sources in PACKAGES below `root`."""
    digest = hashlib.blake2b(digest_size=8)
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            status = file.stat()
            digest.update(f"{file.relative_to(root)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
