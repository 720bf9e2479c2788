"""The folder in which Numba caches compiled code: a separate one for each version of the compiled functions.

Numba recompiles a cached function when its own file has changed, but not when a function that it calls has changed in
another file: after an update, code of the old version would run. With a folder per version, an update starts with an empty
cache.
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

KEPT = 3  # folders of earlier versions, so that switching between branches does not compile again each time
PACKAGES = ("beton_tools", "fastft/augment", "fastft/bench", "fastft/data")  # with compiled functions
_COMPILED = re.compile(rb"^(?:from|import) (?:numba|beton_tools\.base\.jit)\b", re.MULTILINE)
_IMPORTED = re.compile(rb"^from ((?:beton_tools|fastft)[\w.]*) import", re.MULTILINE)


def use_own_cache() -> None:
    """Set Numba's cache folder, unless NUMBA_CACHE_DIR is set. Call before anything is compiled. Does not import Numba."""
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


def fingerprint(root: Path) -> str:
    """Hash of the files in PACKAGES that hold compiled functions, and of those that they import: compiled code has constants
    and functions of both.
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

    Raises PermissionError: the folder exists and others can write to it, or own it.
    """
    folder = Path(tempfile.gettempdir()) / f"fastft-numba-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} can be written to by other users")
    return folder
