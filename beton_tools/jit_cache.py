"""Where Numba keeps compiled code: a folder for every state of our sources.

Numba recompiles a cached function when its own file has changed, but not when a function that it calls has changed in
another file: after an update, code of the old version would run. Here an update begins with an empty folder.
"""

import hashlib
import os
import shutil
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

KEPT = 3  # folders of earlier states: a checkout that goes back and forth does not compile anew each time
PACKAGES = ("beton_tools", "fastft/augment", "fastft/bench", "fastft/data")  # where compiled functions live


def use_own_cache() -> None:
    """Point Numba to the folder, unless NUMBA_CACHE_DIR says where; call it before anything is compiled."""
    if "NUMBA_CACHE_DIR" in os.environ:
        return
    folder = _folder_of(fingerprint(Path(__file__).parent.parent))
    if folder is None:
        return  # Numba falls back on the folders of the sources
    os.environ["NUMBA_CACHE_DIR"] = str(folder)  # child processes use the same
    if "numba" in sys.modules:
        sys.modules["numba"].core.config.CACHE_DIR = str(folder)
    with suppress(FileNotFoundError):  # another process that starts now does the same
        for old in sorted(folder.parent.iterdir(), key=lambda f: f.stat().st_mtime)[: -KEPT - 1]:
            shutil.rmtree(old, ignore_errors=True)


def _folder_of(state: str) -> Path | None:
    """A folder that can be written to; None where there is none."""
    for home in (_home_cache, _temporary_cache):
        try:
            folder = home() / state
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder)
        except (OSError, RuntimeError):  # closed to us, full, or nobody's home: expanduser's RuntimeError
            continue
        return folder
    return None


def _home_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fastft" / "numba"


def _temporary_cache() -> Path:
    """Ours alone: who can write there can run code as us. Raises PermissionError where somebody else made it."""
    folder = Path(tempfile.gettempdir()) / f"fastft-numba-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not ours alone")
    return folder


def fingerprint(root: Path) -> str:
    """Changes with any of the sources below `root`'s packages: names, sizes and times of change."""
    digest = hashlib.blake2b(digest_size=8)
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            status = file.stat()
            digest.update(f"{file.relative_to(root)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
