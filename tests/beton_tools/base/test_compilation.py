"""A user who waits for Numba is told so; with a filled cache nothing is said."""

import re
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys, time
from beton_tools.base import compilation
compilation.FIRST = compilation.INTERVAL = 0.0
compilation.announce_compilation(print)
import beton_tools.jpeg
from module import outer
outer(1)
"""
MODULE = """
from numba import njit
@njit(cache=True)
def inner(x):
    return x + 1
@njit(cache=True)
def outer(x):
    return inner(x)
"""


def test_compilation_is_named_with_progress_and_only_when_it_happens(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(MODULE)
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"}
    command = [sys.executable, "-c", PROGRAM]
    first, again = (
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout for _ in range(2)
    )
    lines = first.splitlines()
    assert "once per machine" in lines[0] and re.search(r": 2 functions in \d+ s$", lines[-1])
    assert again == ""
