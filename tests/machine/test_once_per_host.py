"""Processes on a host map what the first one opened, or open it themselves if they cannot."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.machine.test_usable_gpu import free_port

WORKER = """
import json, sys
import numpy as np
from beton_tools.base.errors import UserError
from beton_tools.base.shared_arrays import SharedArrays
from fastft.machine import distributed
from fastft.machine.distributed import find_world

mode, calls = sys.argv[1], []

def work():
    calls.append(1)
    if mode == "refused":
        raise UserError("train.beton is damaged")
    return {"table": np.arange(100_000), "title": "x"}

if mode == "hosts":
    distributed.host_identity = lambda: str(world.rank // 2)
if mode == "containers":
    def refuse(self):
        raise PermissionError
    SharedArrays.map = refuse
with find_world("cpu") as world:
    try:
        value = world.once_per_host(work, f"other files {world.rank == 2}" if mode == "keys" else "")
        said = [int(value["table"].sum()), value["table"].flags.writeable]
    except UserError as error:
        said = [str(error)]
    print(json.dumps([len(calls), *said]), flush=True)
"""


def results(mode: str, processes: int) -> list[Any]:
    """What each process printed: how often it worked, then its result."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)
    }  # fmt: skip
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, mode], stdout=subprocess.PIPE, text=True,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(processes)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0] * processes
    return [json.loads(text.splitlines()[-1]) for text in said]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        pytest.param(
            "host", [[1, 4999950000, False], [0, 4999950000, False], [0, 4999950000, False]], marks=pytest.mark.slow
        ),
        ("hosts", [[1, 4999950000, False], [0, 4999950000, False], [1, 4999950000, True]]),
        pytest.param(
            "keys", [[1, 4999950000, False], [0, 4999950000, False], [1, 4999950000, True]], marks=pytest.mark.slow
        ),
        pytest.param(
            "containers", [[2, 4999950000, True], [1, 4999950000, True], [1, 4999950000, True]], marks=pytest.mark.slow
        ),
        ("refused", [[1, "train.beton is damaged"], [0, "train.beton is damaged"], [0, "train.beton is damaged"]]),
    ],
)
def test_the_first_process_on_each_host_works_and_the_others_map_its_arrays(mode, expected):
    assert results(mode, 3) == expected
