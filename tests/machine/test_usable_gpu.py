"""A GPU that torch cannot use is one line with the repair, before any work: never a traceback, nor a run on the CPU."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from beton_tools.base.errors import UserError
from fastft.cli.doctor import FAIL, check_architectures, check_gpu
from fastft.machine import distributed, usable_gpu
from fastft.machine.distributed import World, find_world
from fastft.machine.usable_gpu import gather_torch
from fastft.train import launch
from tests.refusals import refuses
from tests.train.runs import flags

CU130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
TOO_OLD = (
    "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by "
    "downloading\nand installing a new version (Triggered internally at CUDAFunctions.cpp:108.)"
)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """`machine(...)`: make torch and the driver's files answer like this machine."""

    def set_up(
        *, seen: tuple[tuple[int, int], ...] = (), cuda: str | None = "13.0", driver: str | None = "580.65.06",
        files: bool = True, visible: str | None = None, warning: str | None = None,
    ) -> None:  # fmt: skip
        proc, devices = tmp_path / "proc", tmp_path / "dev"
        devices.mkdir()
        if driver is not None:
            (proc / "gpus/0000:07:00.0").mkdir(parents=True)
            (proc / "gpus/0000:07:00.0/information").write_text("Model: \t\t Tesla V100-SXM2-16GB\nIRQ:   \t\t 45\n")
            (proc / "version").write_text(
                f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Sat Aug 26 2023\n"
            )
        if files:
            (devices / "nvidia0").touch()
        monkeypatch.setattr(usable_gpu, "PROC", proc)
        monkeypatch.setattr(usable_gpu, "DEVICES", devices)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

        def is_available() -> bool:
            if warning is not None:
                usable_gpu.warnings.warn(warning, stacklevel=1)
            return bool(seen)

        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", is_available)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(seen))
        monkeypatch.setattr(torch.cuda, "set_device", lambda *_: None)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(CU130))
        monkeypatch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda i: SimpleNamespace(name=f"GPU {i}", major=seen[i][0], minor=seen[i][1], total_memory=16 << 30),
        )

    return set_up


MACHINES = {
    "no code for the card": ({"seen": ((7, 0),)}, r"was not built for sm_70\. .*torch<2\.15.*cu126"),
    "driver too old": (
        {"driver": "470.57.02", "warning": TOO_OLD}, r"Tesla V100-SXM2-16GB with driver 470\.57\.02, which is too old.*580"
    ),
    "driver for CUDA 12": ({"driver": "535.104.05"}, r"update the driver to 580 or newer, or .*pip install .*cu126"),
    "torch for the CPU": ({"cuda": None}, r"Tesla V100-SXM2-16GB, but torch was built for CPUs only.*cu126"),
    "a container without GPUs": ({"files": False}, r"this container has no /dev/nvidia0.*docker run --gpus all"),
    "a GPU that is not there": ({"visible": "7"}, r"sees none with CUDA_VISIBLE_DEVICES=7.*unset CUDA_VISIBLE_DEVICES"),
    "another reason": ({"warning": "CUDA initialization: Error 802: system not yet initialized"}, r"\(Error 802: system not"),
}  # fmt: skip


@pytest.mark.parametrize(("described", "line"), MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("command", ["train", "eval", "predict", "bench"])
def test_commands_ask_before_anything_is_converted_or_fetched(
    command, described, line, machine, refused, tiny, tmp_path
):
    """The folder of photographs is not read, the weights are not fetched, and nothing is written."""
    machine(**described)
    options = [o for o in flags(tiny, tmp_path / "run") if not o.startswith(("--train.device", "--model.weights"))]
    words = {
        "train": ["photos", *options, "--data.train=nowhere"],
        "eval": ["no-checkpoint"],
        "predict": ["no-checkpoint", "nowhere.jpg"],
        "bench": ["step", "--quick", "--out", tmp_path / "bench"],
    }
    said = refused([command, *words[command]])
    assert re.search(line, said), said
    assert ("CUDA_VISIBLE_DEVICES=-1" if command == "bench" else "device=cpu") in said
    assert not any((tmp_path / name).exists() for name in ("run", "bench"))


@pytest.mark.parametrize(("described", "line"), MACHINES.values(), ids=MACHINES)
def test_doctor_says_the_same(described, line, machine):
    machine(**described)
    facts = gather_torch()
    found = [result for check in (check_gpu, check_architectures) if (result := check(facts)) and result[0] == FAIL]
    assert len(found) == 1 and re.search(line, ". ".join(found[0][1:]))


def test_the_cpu_is_used_where_it_is_meant(machine):
    """By the option, by variables that hide the GPUs, and where there is no GPU."""
    machine(cuda=None)
    assert find_world("cpu").device.type == "cpu"
    with refuses("torch was built for CPUs only"):
        find_world("auto")


@pytest.mark.parametrize(
    "described", [{"visible": ""}, {"visible": "-1"}, {"visible": "NoDevFiles"}, {"driver": None, "files": False}]
)
def test_hidden_gpus_are_not_asked_for(described, machine):
    machine(cuda=None, **described)
    assert find_world("auto").device.type == "cpu"


def test_another_card_in_the_machine_need_not_be_usable(machine, monkeypatch):
    """A process asks about the GPU that it uses, not about an old one for the screen."""
    machine(seen=((9, 0), (5, 0)))
    assert find_world("auto").device == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with refuses("not built for sm_50"):
        find_world("auto")


@pytest.mark.parametrize(("variables", "says"), [({}, False), ({"SLURM_JOB_ID": "7"}, True)])
def test_more_processes_than_gpus_says_what_to_do_under_slurm(variables, says, machine, monkeypatch):
    machine(seen=((9, 0),))
    for name, value in ({"LOCAL_RANK": "3"} | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="process 3 of this node has no GPU") as caught:
        find_world("auto")
    assert ("ask Slurm for --gpus-per-node" in str(caught.value)) == says


PROCESS = """
import json, sys, torch
from beton_tools.base.errors import UserError
from fastft.machine import distributed
kind, problem = sys.argv[1:3]
if kind == "cuda":
    distributed.refuse_unusable_gpu = lambda *_: None
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 8
    torch.cuda.set_device = lambda *_: None
elif problem:
    def refuse(*_):
        raise UserError(problem)
    distributed.refuse_unusable_gpu = refuse
try:
    with distributed.find_world("auto", 1):
        print(json.dumps("connected"))
except UserError as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.parametrize(
    ("kinds", "problem", "line"),
    [
        (
            ("cuda", "cpu"),
            "",
            r"^process 1 on host \S+ has no GPU, and process 0 on host \S+ has one\. .*same device type",
        ),
        pytest.param(
            ("cuda", "cpu"), "V100 with an old driver", r"^process 1 on host \S+: V100 with an old driver$",
            marks=pytest.mark.slow,
        ),
        (("cpu", "cpu"), "V100 with an old driver", r"^V100 with an old driver$"),
        pytest.param(("cpu", "cpu"), "", r"^connected$", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_processes_with_different_devices_end_with_the_same_line(kinds, problem, line):
    """Before NCCL and gloo wait for each other."""
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, kind, problem], stdout=subprocess.PIPE, text=True,
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank, kind in enumerate(kinds)
    ]  # fmt: skip
    said = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert said[0] == said[1] and re.search(line, said[0]), said


ALONE = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


def test_a_node_that_never_comes_is_told_after_seconds(monkeypatch, capfd):
    """torch prints nothing until its time-out, which is minutes."""
    monkeypatch.setattr(distributed, "WAITING_SECONDS", 0.2)
    for name, value in {**ALONE, "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    world = World(0, 2, 0, torch.device("cpu"), distributed.timedelta(seconds=2))
    with pytest.raises(RuntimeError):
        world.__enter__()
    assert re.search(
        r"process 0 has waited 0 s for the other processes at 127\.0\.0\.1:\d+\. Check", capfd.readouterr().err
    )


def test_a_launcher_whose_master_never_comes_says_so(monkeypatch, capfd):
    monkeypatch.setattr(launch, "WAITING_SECONDS", 0.2)
    monkeypatch.setattr(launch, "_children", lambda: [])  # earlier tests leave some
    address = f"--master-addr=127.0.0.1 --master-port={free_port()}"
    options = launch.get_args_parser().parse_args(f"--nnodes=2 --node-rank=1 {address} --module fastft.cli".split())
    launch.announce_waiting(options)
    time.sleep(0.6)
    assert re.search(r"waited 0 s for the other nodes at 127\.0\.0\.1:\d+\. Check", capfd.readouterr().err)
