"""Stock FFCV 1.0.2 reads what we write.

In a separate process: FFCV's OSCacheManager makes Numba's interned type `uint8[::1]` read-only in place, so that functions
that this process compiles later never match their signatures and are compiled again at every call.
"""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow  # its reader: test_writer
def test_stock_ffcv_reads_our_files():
    checks = Path(__file__).with_name("stock_loader_checks.py")
    # without hypothesis: it parses its sources at the end, and on Python 3.11 the parser fails when garbage collection runs
    # Numba's finalizers, which FFCV's types break
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:hypothesispytest", str(checks)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
