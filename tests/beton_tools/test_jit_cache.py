"""Compiled code of an older version never runs."""

import os
import subprocess
import sys
from pathlib import Path

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
