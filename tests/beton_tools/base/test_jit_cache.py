"""Compiled code of an older version never runs."""

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import pytest

from beton_tools.base.console import damaged_cache_as_user_error
from beton_tools.base.jit_cache import PACKAGES, fingerprint
from tests.refusals import refuses

SOURCES = Path(__file__).parents[3] / "beton_tools"

INNER = "from numba import njit\n@njit(cache=True)\ndef inner():\n    return {value}\n"
OUTER = (
    "from numba import njit\nfrom beton_tools.inner import inner\n@njit(cache=True)\ndef outer():\n    return inner()\n"
)


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
    (package / "base" / "jit_cache.py").write_text((SOURCES / "base" / "jit_cache.py").read_text())
    (package / "__init__.py").write_text("from beton_tools.base.jit_cache import use_own_cache\nuse_own_cache()\n")
    (package / "outer.py").write_text(OUTER)
    (package / "inner.py").write_text(INNER.format(value=1))
    return package


def test_an_edit_in_a_called_file_recompiles_its_callers(tmp_path, package):
    assert run(tmp_path, tmp_path / "home").stdout == "1\n"
    (package / "inner.py").write_text(INNER.format(value=2))
    assert run(tmp_path, tmp_path / "home").stdout == "2\n"


def test_only_files_with_compiled_functions_and_their_imports_change_the_folder(tmp_path, package):
    (package / "outer.py").write_text(OUTER + "from beton_tools.limits import LIMIT\n")
    (package / "limits.py").write_text("LIMIT = 1\n")
    before = fingerprint(tmp_path)
    (package / "unrelated.py").write_text("print()\n")
    assert fingerprint(tmp_path) == before
    (package / "limits.py").write_text("LIMIT = 2\n")
    assert fingerprint(tmp_path) != before


def test_a_damaged_file_of_the_cache_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    (tmp_path / "compiled.py").write_text("from numba import njit\n@njit(cache=True)\ndef one():\n    return 1\n")
    code = compile((tmp_path / "compiled.py").read_text(), tmp_path / "compiled.py", "exec")

    def run_compiled() -> None:
        names: dict[str, Any] = {"__name__": "compiled"}
        exec(code, names)
        with damaged_cache_as_user_error():
            names["one"]()

    run_compiled()
    for index in tmp_path.rglob("*.nbi"):
        index.write_bytes(index.read_bytes()[:100])
    with refuses(f"compiled code in {tmp_path} is damaged; delete the folder"):
        run_compiled()

    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.load", no_memory)
    with pytest.raises(MemoryError):  # is not damage; commands end with a line of their own
        run_compiled()


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
