"""The folder in which Numba caches compiled code. Each version of the compiled functions has its own folder.

Numba recompiles a cached function when its own file has changed, but not when a function that it calls has changed in
another file. After an update, old code would run. With one folder per version, an update starts with an empty cache.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

KEPT = 3  # folders kept for earlier versions, so that switching between branches does not compile again each time
PACKAGES = ("beton_tools", "fastft/augment", "fastft/bench", "fastft/data")  # packages with compiled functions
_COMPILED = re.compile(rb"^(?:from|import) (?:numba|beton_tools\.base\.jit)\b", re.MULTILINE)
_IMPORTED = re.compile(rb"^from ((?:beton_tools|fastft)[\w.]*) import", re.MULTILINE)


def use_own_cache() -> None:
    """Set Numba's cache folder, unless NUMBA_CACHE_DIR is set.

    Call this before anything is compiled. It does not import Numba.
    """
    if "NUMBA_CACHE_DIR" in os.environ:
        return
    folder = _folder_of(fingerprint(Path(__file__).parents[2]))
    if folder is None:
        return  # Numba uses the folders that hold the sources
    os.environ["NUMBA_CACHE_DIR"] = str(folder)  # child processes use the same folder
    if "numba" in sys.modules:
        sys.modules["numba"].core.config.CACHE_DIR = str(folder)
    with suppress(OSError):  # another process that starts now deletes them too
        for old in sorted(folder.parent.iterdir(), key=lambda f: f.stat().st_mtime)[: -KEPT - 1]:
            shutil.rmtree(old, ignore_errors=True)


def fingerprint(root: Path) -> str:
    """Hash the files in PACKAGES that contain compiled functions, and the files that they import.

    Compiled code contains constants and functions from both.
    """
    texts = {file: file.read_bytes() for package in PACKAGES for file in sorted((root / package).rglob("*.py"))}
    used = {file for file, text in texts.items() if _COMPILED.search(text)}
    names = {name.decode() for file in used for name in _IMPORTED.findall(texts[file])}
    used |= {file for name in names if (file := root / f"{name.replace('.', '/')}.py").exists()}
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(used):
        digest.update(f"{file.relative_to(root)}\n".encode() + (texts.get(file) or file.read_bytes()))
    return digest.hexdigest()


def _folder_of(state: str) -> Path | None:
    """Return a writable folder for this version of the sources, or None if there is none."""
    for home in (_home_cache, _temporary_cache):
        try:
            folder = _private(home()) / state
            folder.mkdir(exist_ok=True)
            os.utime(folder)
        except (OSError, RuntimeError):  # not writable or full. expanduser raises RuntimeError without a home directory
            continue
        return folder
    return None


def _home_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fastft" / "numba"


def _temporary_cache() -> Path:
    return Path(tempfile.gettempdir()) / f"fastft-numba-{os.getuid()}"


def _private(folder: Path) -> Path:
    """Return the folder, created if it is missing, that only this user can write to, because the code in it is run.

    Raises:
        PermissionError: The folder exists, and others own it or can write to it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} can be written to by other users")
    return folder
