"""A process that has used a loader ends, also where it has one core (containers and the smallest cloud machines)."""

import os
import subprocess
import sys

SECONDS = 120  # generous: the import of torch and Numba on a busy machine

ITERATE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from fastft.data.loader import EvalLoader, TrainLoader
for kind in (TrainLoader, EvalLoader):
    with kind(sys.argv[1], "3aug", 48, batch_size=8, workers=2) as loader:
        assert sum(len(batch.ids) for batch in loader) > 0
"""


def test_a_process_on_one_core_ends_after_it_used_a_loader(indexed_beton):
    """With Numba's TBB layer it waited for ever at its end (numba#10556)."""
    command = [sys.executable, "-c", ITERATE, str(indexed_beton)]
    assert subprocess.run(command, timeout=SECONDS, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode == 0
