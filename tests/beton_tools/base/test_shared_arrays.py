"""Arrays that several processes map: they are equal, cannot be written to, and leave nothing when a process is killed."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from beton_tools.base.shared_arrays import SharedArrays, share_arrays

SHARER = """
import pickle, sys
import numpy as np
from beton_tools.base.shared_arrays import share_arrays
table = np.zeros(1_000_000, [("a", "<i8"), ("b", "u1")])
table["a"] = np.arange(1_000_000)
shared = share_arrays({"table": table, "same": table, "small": np.arange(3), "empty": np.empty(0), "text": "x"})
pickle.dump(shared, sys.stdout.buffer)
sys.stdout.close()
sys.stdin.read()
"""


def test_another_process_maps_the_arrays_and_keeps_them_when_the_sharer_is_killed():
    sharer = subprocess.Popen([sys.executable, "-c", SHARER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert sharer.stdout is not None
    shared: SharedArrays = pickle.load(sharer.stdout)
    value = shared.map()
    sharer.send_signal(signal.SIGKILL)
    sharer.communicate()
    assert value["text"] == "x" and value["small"].tolist() == [0, 1, 2] and len(value["empty"]) == 0
    assert value["same"] is value["table"] and value["table"].nbytes == 9_000_000
    assert np.array_equal(value["table"]["a"], np.arange(1_000_000))
    with pytest.raises(ValueError, match="read-only"):
        value["table"]["a"][0] = 1
    with pytest.raises(OSError):
        shared.map()  # the file is gone with its process


def test_memory_is_freed_when_the_last_process_lets_go():
    def held() -> int:
        """How many anonymous files this process maps or has open."""
        mapped = Path("/proc/self/maps").read_text().count("memfd:fastft")
        return mapped + sum(
            "memfd:fastft" in opened for opened in map(os.path.realpath, Path("/proc/self/fd").iterdir())
        )

    shared = share_arrays(np.arange(1000))
    value = shared.map()
    assert held() > 0
    shared.close()
    assert value.sum() == 499_500
    del value
    assert held() == 0
