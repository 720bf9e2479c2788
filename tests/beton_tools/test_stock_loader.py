"""Stock FFCV 1.0.2 reads what we write.

In a process of its own: FFCV's OSCacheManager makes Numba's interned type `uint8[::1]` read-only in place, and whatever
else that process compiles afterwards finds no match for its signatures, over and over.
"""

import subprocess
import sys
from pathlib import Path


def test_stock_ffcv_reads_our_files() -> None:
    checks = Path(__file__).with_name("stock_loader_checks.py")
    # hypothesis parses its sources at the end, and a parser that garbage collection interrupts in the midst of Numba's
    # finalizers, which FFCV's types upset, fails on Python 3.11
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:hypothesispytest", str(checks)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
