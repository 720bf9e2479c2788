"""Compiled code of an older version never runs."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from beton_tools.jit_cache import PACKAGES, fingerprint

INNER = "from numba import njit\n@njit(cache=True)\ndef inner():\n    return {value}\n"
OUTER = "from numba import njit\nfrom beton_tools.inner import inner\n@njit(cache=True)\ndef outer():\n    return inner()\n"


def answer(root: Path, home: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"} | {
        "XDG_CACHE_HOME": str(home)
    }
    code = "from beton_tools.outer import outer; print(outer())"
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_an_edit_in_a_called_file_recompiles_its_callers(tmp_path: Path) -> None:
    package = tmp_path / "beton_tools"
    package.mkdir()
    source = Path(sys.modules["beton_tools.jit_cache"].__file__ or "").read_text()
    (package / "jit_cache.py").write_text(source)
    (package / "__init__.py").write_text("from beton_tools.jit_cache import use_own_cache\nuse_own_cache()\n")
    (package / "outer.py").write_text(OUTER)
    (package / "inner.py").write_text(INNER.format(value=1))
    assert answer(tmp_path, tmp_path / "home") == "1"
    (package / "inner.py").write_text(INNER.format(value=2))
    assert answer(tmp_path, tmp_path / "home") == "2"


@pytest.fixture
def closed(tmp_path: Path) -> dict[str, str]:
    """An environment whose home cannot be written to, not even by root."""
    (tmp_path / "home").write_text("a file")
    (tmp_path / "tmp").mkdir()
    closed = {"XDG_CACHE_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    return {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"} | closed


def chosen(environment: dict[str, str], before: str = "") -> str:
    """The cache folder of a fresh process; `before` runs first in it."""
    code = f"import os\n{before}\nimport beton_tools\nprint(os.environ.get('NUMBA_CACHE_DIR'))"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_without_a_home_to_write_to_a_private_temporary_folder_serves(
    tmp_path: Path, closed: dict[str, str]
) -> None:
    for _ in range(2):  # makes it, then finds it
        folder = Path(chosen(closed)).parent
        assert folder == tmp_path / "tmp" / f"fastft-numba-{os.getuid()}"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_nobodys_home_is_no_traceback(tmp_path: Path, closed: dict[str, str]) -> None:
    del closed["XDG_CACHE_HOME"]
    homeless = (
        "from pathlib import Path\ndef expanduser(self): raise RuntimeError('no home')\n"
        "Path.expanduser = expanduser"
    )
    assert Path(chosen(closed, homeless)).is_relative_to(tmp_path / "tmp")


@pytest.mark.parametrize("trap", ["open to all", "a link"])
def test_a_temporary_folder_that_others_prepared_is_not_used(
    tmp_path: Path, closed: dict[str, str], trap: str
) -> None:
    folder = tmp_path / "tmp" / f"fastft-numba-{os.getuid()}"
    if trap == "open to all":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        (tmp_path / "theirs").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "theirs")
    assert chosen(closed) == "None"
    assert list(folder.iterdir()) == []


def test_every_package_with_compiled_code_counts() -> None:
    root = Path(__file__).parents[2]
    compiled = {
        f.parent
        for p in ("beton_tools", "fastft")
        for f in (root / p).rglob("*.py")
        if "@njit" in f.read_text()
    }
    assert all(any(folder.is_relative_to(root / package) for package in PACKAGES) for folder in compiled)
    assert len(fingerprint(root)) == 16
