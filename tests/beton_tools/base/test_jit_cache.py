"""Compiled code of an older version, or from a damaged file, never runs."""

import errno
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba.core import caching

from beton_tools.base.jit_cache import PACKAGES, fingerprint

SOURCES = Path(__file__).parents[3] / "beton_tools"

INNER = "from numba import njit\n@njit(cache=True)\ndef inner():\n    return {value}\n"
OUTER = "from numba import njit\nfrom beton_tools.inner import inner\n@njit(cache=True)\ndef outer():\n    return inner()\n"


def run(root: Path, home: Path) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"} | {
        "XDG_CACHE_HOME": str(home)
    }
    code = "from beton_tools.outer import outer; print(outer())"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package with our modules for the cache and two compiled functions."""
    package = tmp_path / "beton_tools"
    package.mkdir()
    for name in ("jit_cache", "jit_checksums", "user_files", "errors"):
        (package / f"{name}.py").write_text((SOURCES / f"{name}.py").read_text())
    (package / "__init__.py").write_text(
        "from beton_tools.base.jit_cache import use_own_cache\nuse_own_cache()\n"
    )
    (package / "outer.py").write_text(OUTER)
    (package / "inner.py").write_text(INNER.format(value=1))
    return package


def test_an_edit_in_a_called_file_recompiles_its_callers(tmp_path: Path, package: Path) -> None:
    assert run(tmp_path, tmp_path / "home").stdout == "1\n"
    (package / "inner.py").write_text(INNER.format(value=2))
    assert run(tmp_path, tmp_path / "home").stdout == "2\n"


def flip_a_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "random": lambda data: np.random.default_rng(0).bytes(len(data)),
    "half": lambda data: data[: len(data) // 2],
    "NUL bytes": lambda data: bytes(len(data)),
    "a flipped bit": flip_a_bit,
    "a pickle without a checksum": lambda data: pickle.dumps(("some", "tuple")),
    "a byte too many": lambda data: data + b"\0",
}


def test_a_damaged_cache_is_compiled_again_with_one_warning(tmp_path: Path, package: Path) -> None:
    home = tmp_path / "home"
    assert run(tmp_path, home).stderr == ""
    assert run(tmp_path, home).stderr == ""
    for suffix, damage in (("nbi", DAMAGES["half"]), ("nbc", DAMAGES["a flipped bit"])):
        files = list(home.rglob(f"*.{suffix}"))
        assert len(files) == 2
        for file in files:
            file.write_bytes(damage(file.read_bytes()))
        damaged, repaired = run(tmp_path, home), run(tmp_path, home)
        assert damaged.stdout == repaired.stdout == "1\n"
        assert damaged.stderr.count("\n") == 1
        assert "is damaged" in damaged.stderr and "compiling it again" in damaged.stderr
        assert repaired.stderr == ""


@pytest.fixture
def cache(tmp_path: Path) -> Any:
    """Numba's cache of one function, with one entry, "data", under the key "key"."""
    cache = caching.IndexDataCacheFile(str(tmp_path), "function", "stamp")
    cache.save("key", "data")
    assert cache.load("key") == "data"
    return cache


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_deleted_and_written_anew(
    tmp_path: Path, cache: Any, suffix: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = tmp_path.glob(f"*.{suffix}")
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert cache.load("key") is None
    assert not path.exists()
    cache.save("key", "new")
    assert cache.load("key") == "new"
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_every_flipped_bit_is_noticed(tmp_path: Path, cache: Any, suffix: str) -> None:
    (path,) = tmp_path.glob(f"*.{suffix}")
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        assert cache.load("key") is None, bit
    path.write_bytes(good)
    assert cache.load("key") == "data"


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("kind", ["FIFO", "directory"])
def test_only_regular_files_are_opened_and_uncached_code_still_runs(
    tmp_path: Path, cache: Any, suffix: str, kind: str
) -> None:
    (path,) = tmp_path.glob(f"*.{suffix}")
    path.unlink()
    os.mkfifo(path) if kind == "FIFO" else path.mkdir()
    assert cache.load("key") is None
    cache.save("key", "new")
    assert cache.load("key") == (None if kind == "directory" else "new")


def test_a_full_disk_is_no_error(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    cache.save("other key", "data")
    assert cache.load("key") == "data"


@pytest.fixture
def closed(tmp_path: Path) -> dict[str, str]:
    """An environment whose home directory cannot be written to, not even by root."""
    (tmp_path / "home").write_text("a file")
    (tmp_path / "tmp").mkdir()
    closed = {"XDG_CACHE_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    return {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"} | closed


def chosen(environment: dict[str, str], before: str = "") -> str:
    """The cache folder of a fresh process; `before` runs first in it."""
    code = f"import os\n{before}\nimport beton_tools\nprint(os.environ.get('NUMBA_CACHE_DIR'))"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_without_a_writable_home_directory_a_private_temporary_folder_is_used(
    tmp_path: Path, closed: dict[str, str]
) -> None:
    for _ in range(2):  # creates it, then finds it
        folder = Path(chosen(closed)).parent
        assert folder == tmp_path / "tmp" / f"fastft-numba-{os.getuid()}"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_user_without_a_home_directory_gets_the_temporary_folder(
    tmp_path: Path, closed: dict[str, str]
) -> None:
    del closed["XDG_CACHE_HOME"]
    homeless = (
        "from pathlib import Path\ndef expanduser(self): raise RuntimeError('no home')\n"
        "Path.expanduser = expanduser"
    )
    assert Path(chosen(closed, homeless)).is_relative_to(tmp_path / "tmp")


@pytest.mark.parametrize("trap", ["writable for all", "a link"])
def test_a_temporary_folder_that_others_can_write_to_is_not_used(
    tmp_path: Path, closed: dict[str, str], trap: str
) -> None:
    folder = tmp_path / "tmp" / f"fastft-numba-{os.getuid()}"
    if trap == "writable for all":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        (tmp_path / "theirs").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "theirs")
    assert chosen(closed) == "None"
    assert list(folder.iterdir()) == []


def test_packages_lists_every_folder_with_compiled_functions() -> None:
    root = Path(__file__).parents[3]
    compiled = {
        f.parent
        for p in ("beton_tools", "fastft")
        for f in (root / p).rglob("*.py")
        if "@njit" in f.read_text()
    }
    assert all(any(folder.is_relative_to(root / package) for package in PACKAGES) for folder in compiled)
    assert len(fingerprint(root)) == 16
