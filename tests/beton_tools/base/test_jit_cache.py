"""Compiled code of an older version never runs."""

import hashlib
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numba
import pytest

from beton_tools.base.jit_cache import PACKAGES, fingerprint

SOURCES = Path(__file__).parents[3] / "beton_tools"

INNER = "from beton_tools.base.jit import njit\n@njit()\ndef inner():\n    return {value}\n"
OUTER = "from beton_tools.base.jit import njit\nfrom beton_tools.inner import inner\n@njit()\ndef outer():\n    return inner()\n"


def run(root: Path, home: Path) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"} | {"XDG_CACHE_HOME": str(home)}
    code = "from beton_tools.outer import outer; print(outer())"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package with our modules for the cache and two compiled functions."""
    package = tmp_path / "beton_tools"
    (package / "base").mkdir(parents=True)
    for name in ("jit_cache.py", "jit.py"):
        (package / "base" / name).write_text((SOURCES / "base" / name).read_text())
    (package / "__init__.py").write_text("from beton_tools.base.jit_cache import use_own_cache\nuse_own_cache()\n")
    (package / "outer.py").write_text(OUTER)
    (package / "inner.py").write_text(INNER.format(value=1))
    return package


def test_an_edit_in_a_called_file_recompiles_its_callers(tmp_path, package):
    assert run(tmp_path, tmp_path / "home").stdout == "1\n"
    (package / "inner.py").write_text(INNER.format(value=12))  # longer: Python's own cache compares length and second
    assert run(tmp_path, tmp_path / "home").stdout == "12\n"


def test_only_files_with_compiled_functions_and_their_imports_change_the_folder(tmp_path, package):
    (package / "outer.py").write_text(OUTER + "from beton_tools.limits import LIMIT\n")
    (package / "limits.py").write_text("LIMIT = 1\n")
    before = fingerprint(tmp_path)
    (package / "unrelated.py").write_text("print()\n")
    assert fingerprint(tmp_path) == before
    (package / "limits.py").write_text("LIMIT = 2\n")
    assert fingerprint(tmp_path) != before


@pytest.fixture
def half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Callable[[Any], float]]:
    """`half()`: a function with empty memory, whose compiled code is kept in tmp_path."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("FASTFT_JIT_CACHE_WARNED", raising=False)
    source = tmp_path / "compiled.py"
    source.write_text("from beton_tools.base.jit import njit\n@njit()\ndef half(x):\n    return x / 2\n")

    def define() -> Callable[[Any], float]:
        names: dict[str, Any] = {"__name__": "compiled"}
        exec(compile(source.read_text(), source, "exec"), names)
        return cast(Callable[[Any], float], names["half"])

    return define


def loaded(function: Any) -> int:
    """How many times code came from the cache."""
    return sum(function.stats.cache_hits.values())


def test_code_of_the_cache_is_used_for_its_own_types(half):
    first = half()
    assert (first(3), first(3.0)) == (1.5, 1.5) and loaded(first) == 0
    again = half()
    assert (again(3), again(3.0)) == (1.5, 1.5) and loaded(again) == 2


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", ["a flipped bit", "the beginning", "nothing"])
def test_a_damaged_file_of_the_cache_counts_as_missing(half, tmp_path, suffix, damage):
    """Numba would run it: the process would end without a word."""
    half()(3.0)
    (file,) = tmp_path.rglob(f"*{suffix}")
    whole = file.read_bytes()
    for at in range(0, len(whole), len(whole) // 20):
        flipped = whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]
        file.write_bytes({"a flipped bit": flipped, "the beginning": whole[:at], "nothing": b""}[damage])
        function = half()
        assert function(3.0) == 1.5 and loaded(function) == 0
        function = half()
        assert function(3.0) == 1.5 and loaded(function) == 1  # it was written again
        if damage == "nothing":
            break


def test_code_that_another_process_wrote_under_the_same_name_is_not_run(half, tmp_path):
    function = half()
    function(3), function(3.0)
    first, second = tmp_path.rglob("*.nbc")
    second.write_bytes(first.read_bytes())
    function = half()
    assert (function(3), function(3.0)) == (1.5, 1.5) and loaded(function) == 1


def test_without_a_usable_cache_code_is_compiled_with_one_warning(half, tmp_path, full_disk):
    with full_disk(64), pytest.warns(RuntimeWarning) as warned:
        assert half()(3.0) == 1.5
        assert half()(3.0) == 1.5
    (text,) = (str(warning.message) for warning in warned)
    assert (
        text.startswith(f"compiled code cannot be kept in {tmp_path} (File too large). ") and "NUMBA_CACHE_DIR" in text
    )
    assert not list(tmp_path.rglob("*.tmp.*"))


def test_a_cache_that_cannot_be_read_is_not_used(half, tmp_path):
    half()(3.0)
    (index,) = tmp_path.rglob("*.nbi")
    index.unlink()
    index.mkdir()
    with pytest.warns(RuntimeWarning, match="Is a directory"):
        assert half()(3.0) == 1.5


def test_a_file_of_another_user_is_not_run_and_is_one_line(half, tmp_path):
    """It is a pickle, which can run any command: here it would create `ran`."""

    class Planted:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    half()(3.0)
    (index,) = tmp_path.rglob("*.nbi")
    planted = pickle.dumps(Planted())
    index.write_bytes(hashlib.blake2b(planted, digest_size=16).digest() + planted)
    index.chmod(0o664)
    with pytest.warns(RuntimeWarning, match="can be written to by other users, so it is not run") as warned:
        assert half()(3.0) == 1.5
    assert len(warned) == 1 and not (tmp_path / "ran").exists()
    if os.getuid() == 0:
        index.chmod(0o600)
        os.chown(index, 12345, -1)
        os.environ.pop("FASTFT_JIT_CACHE_WARNED")
        with pytest.warns(RuntimeWarning, match="not run"):
            assert half()(3.0) == 1.5
        assert not (tmp_path / "ran").exists()


def test_files_are_private_with_every_umask(half, tmp_path):
    before = os.umask(0o002)
    try:
        half()(3.0)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(f.stat().st_mode) for f in tmp_path.rglob("*.nb*")} == {0o644}
    again = half()
    assert again(3.0) == 1.5 and loaded(again) == 1


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


def test_without_a_writable_home_directory_a_private_temporary_folder_is_used(tmp_path, closed):
    for _ in range(2):  # creates it, then finds it
        folder = Path(chosen(closed)).parent
        assert folder == tmp_path / "tmp" / f"fastft-numba-{os.getuid()}"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_user_without_a_home_directory_gets_the_temporary_folder(tmp_path, closed):
    del closed["XDG_CACHE_HOME"]
    homeless = (
        "from pathlib import Path\ndef expanduser(self): raise RuntimeError('no home')\nPath.expanduser = expanduser"
    )
    assert Path(chosen(closed, homeless)).is_relative_to(tmp_path / "tmp")


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o000])
def test_the_folder_in_the_home_directory_is_private_with_every_umask(tmp_path, closed, umask):
    home = tmp_path / "cache"
    folder = Path(chosen(closed | {"XDG_CACHE_HOME": str(home)}, f"os.umask({umask})")).parent
    assert folder == home / "fastft/numba" and stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("trap", ["writable for the group", "a link", "of another user"])
def test_a_folder_in_the_home_directory_that_others_can_write_to_is_not_used(tmp_path, closed, trap):
    folder = tmp_path / "cache/fastft/numba"
    folder.parent.mkdir(parents=True)
    if trap == "a link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "theirs")
    else:
        folder.mkdir()
        folder.chmod(0o770 if trap == "writable for the group" else 0o700)
        if trap == "of another user":
            if os.getuid() != 0:
                pytest.skip("only root can give a folder away")
            os.chown(folder, 12345, -1)
    assert Path(chosen(closed | {"XDG_CACHE_HOME": str(tmp_path / "cache")})).is_relative_to(tmp_path / "tmp")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("trap", ["writable for all", "a link"])
def test_a_temporary_folder_that_others_can_write_to_is_not_used(tmp_path, closed, trap):
    folder = tmp_path / "tmp" / f"fastft-numba-{os.getuid()}"
    if trap == "writable for all":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        (tmp_path / "theirs").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "theirs")
    assert chosen(closed) == "None"
    assert list(folder.iterdir()) == []


def test_packages_lists_every_folder_with_compiled_functions():
    root = Path(__file__).parents[3]
    compiled = {
        f.parent for p in ("beton_tools", "fastft") for f in (root / p).rglob("*.py") if "import njit" in f.read_text()
    }
    assert all(any(folder.is_relative_to(root / package) for package in PACKAGES) for folder in compiled)
    assert len(fingerprint(root)) == 16
