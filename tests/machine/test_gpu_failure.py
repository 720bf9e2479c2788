"""A GPU that fails ends the run with code 75 and one line that names host and device, so that a job is requeued elsewhere."""

import os
import socket
import subprocess
import sys

import pytest
import torch
from rich.console import Console

from fastft.cli import main
from fastft.jobs import sweep
from fastft.machine.distributed import World, connected, is_gpu_failure
from fastft.machine.exits import EXIT_REQUEUE, GpuFailed
from fastft.recipe import load_recipe
from tests.train.runs import flags

# as PyTorch and NCCL print them
FAILURES = [
    "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA error: unspecified launch failure\nSearch for `cudaErrorLaunchFailure'",
    "CUDA error: uncorrectable NVLink error detected during the execution",
    "CUDA error: unknown error",
    "NCCL error in: ProcessGroupNCCL.cpp:1, unhandled cuda error. Last error: Cuda failure 'uncorrectable ECC error encountered'",
]
OTHERS = [
    "CUDA error: device-side assert triggered",
    "CUDA out of memory. Tried to allocate 2 GiB",
    "CUDA error: an illegal memory access was encountered",
    "an unknown error in DECCA",
]


@pytest.mark.parametrize("text", FAILURES)
def test_the_line_names_host_and_device(text):
    with pytest.raises(GpuFailed) as caught, connected(World(0, 1, 3, torch.device("cuda", 3))):
        raise RuntimeError(text)
    said = str(caught.value)
    assert socket.gethostname() in said and "cuda:3" in said and "leave this host out" in said and "\n" not in said


@pytest.mark.parametrize("text", OTHERS)
def test_a_programs_own_errors_are_no_failure_of_the_gpu(text):
    assert not is_gpu_failure(RuntimeError(text))
    with pytest.raises(RuntimeError, match=text[:20]), connected(World(0, 1, 3, torch.device("cuda", 3))):
        raise RuntimeError(text)


def test_the_command_ends_with_code_75(tiny, tmp_path, monkeypatch, capsys):
    def fail(*_: object, **more: object) -> None:
        raise RuntimeError(FAILURES[0])

    monkeypatch.setattr("fastft.train.step.Step.micro_batch", fail)
    assert main(["train", "rcp/final_b16.yaml", *flags(tiny, tmp_path / "run")]) == EXIT_REQUEUE
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("fastft train: the GPU of process 0 failed") and socket.gethostname() in last


def test_a_sweep_does_not_go_on_with_its_other_runs(tiny, tmp_path, monkeypatch):
    def fail(*_: object, **more: object) -> None:
        raise RuntimeError(FAILURES[1])

    monkeypatch.setattr(sweep, "run_stages", fail)
    recipe = load_recipe("rcp/final_b16.yaml", flags(tiny, tmp_path / "run"))
    planned = type("Planned", (), {"recipe": recipe, "files": {}, "inputs": None})()
    with pytest.raises(GpuFailed), connected(World(0, 1, 0, torch.device("cpu"))) as world:
        sweep.train_run(planned, world, Console(quiet=True))  # type: ignore[arg-type]


PROCESS = """
import sys, time
from fastft.machine.distributed import connected, find_world
from fastft.machine.exits import Preempted
try:
    with connected(find_world("cpu", 1)) as world:
        world.barrier()
        if world.rank == 1:
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
        world.barrier()
except Preempted as stop:
    print(type(stop).__name__, stop)
    sys.stdout.flush()
    time.sleep(2 * (world.rank == 0))  # it hosts the store
    import os; os._exit(75)
"""


def test_peers_are_told_which_gpu_failed():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [EXIT_REQUEUE, EXIT_REQUEUE]
    assert said[0].startswith("PeerLost the GPU of process 1 failed") and said[1].startswith(
        "GpuFailed the GPU of process 1"
    )
    assert all(socket.gethostname() in text for text in said)
