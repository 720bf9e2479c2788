"""The same training on one process and on many; errors that say which process failed; a process ends with its launcher."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from beton_tools.read.format import Beton
from fastft.augment.rng import epoch_words
from fastft.evaluate.evaluation import evaluate_checkpoint
from fastft.machine.distributed import LAUNCHER, STARTED_BY_TORCHRUN, World, connected, exit_without_launcher
from fastft.machine.exits import EXIT_REQUEUE, PeerLost
from fastft.run.checkpoint import list_checkpoints
from fastft.run.run_directory import lock_run
from fastft.train import launch as launch_module
from fastft.train.launch import exit_code
from tests.train.runs import flags, logged, losses, result_of, run, wait_for

CRASH = """import os
if os.environ.get("RANK") == "1":
    from fastft.train.reporting import Reporter
    Reporter.interval = lambda *_: 1 / 0
"""
KILLED = """import os, signal
if os.environ.get("RANK") == "0":
    from fastft.train.reporting import Reporter
    Reporter.interval = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""
ENDLESS_MEASUREMENT = """import time
from fastft.train import step_choice
def measure(*arguments):
    while True:
        time.sleep(1)
step_choice._measure = measure
"""
# the recorded pass runs again on the same tensors, as a CUDA graph does on a card
GRAPH = """from fastft.train import step, step_choice
step.capture_graph = lambda function: function() or function
step_choice.failure = lambda *_: None
"""
NAMESPACE = ("unshare", "--user", "--map-root-user", "--uts")
UNKNOWN_HOST = (*NAMESPACE, "sh", "-c", 'hostname unknown-host; exec "$@"', "sh")
if subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode:
    UNKNOWN_HOST = ()  # where no namespaces are allowed, the host's own name is taken
ROUNDING = 2e-5  # sums in another order: fp32 rounding of losses near 0.7, over steps


def launch(
    *command: str, processes: int = 2, before: tuple[str, ...] = (), options: tuple[str, ...] = (), **env: str
) -> subprocess.Popen:
    """`fastft` under torchrun, the processes' output in one pipe each for stdout and stderr."""
    return subprocess.Popen(
        [*before, sys.executable, "-m", "fastft.train.launch", "--nproc-per-node", str(processes), *options, *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
    )  # fmt: skip


def node(rank: int, address: str = "127.0.0.1", port: int = 29617) -> tuple[str, ...]:
    """torchrun's options for one of two hosts."""
    places = {"nnodes": 2, "node-rank": rank, "master-addr": address, "master-port": port}
    return tuple(f"--{name}={value}" for name, value in places.items())


def said_by(process: subprocess.Popen, code: int = 0) -> str:
    """Its errors, once it has ended with this code."""
    said: str = process.communicate(timeout=600)[1]
    assert process.returncode == code, said
    return said


def to_rounding(value: Any) -> Any:
    """Return an expected value for `==` that allows rounding errors in floats; all other values must be equal."""
    if isinstance(value, dict):
        return {name: to_rounding(part) for name, part in value.items()}
    if isinstance(value, list):
        return [to_rounding(part) for part in value]
    return pytest.approx(value, rel=1e-4, abs=1e-4) if isinstance(value, float) else value


def close(got: list[tuple[int, float]], want: list[tuple[int, float]], rounding: float = ROUNDING) -> bool:
    """The same steps, losses equal to rounding."""
    return [s for s, _ in got] == [s for s, _ in want] and all(
        abs(a - b) < rounding for (_, a), (_, b) in zip(got, want, strict=True)
    )


HALF = {"train__amp": "bf16", "train__half_residual": "on"}


def test_nccl_starts_with_the_process_group(monkeypatch):
    """Given the device, else at the first all-reduce: after memory was sized, with errors that show late."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **options: given.update(options))
    monkeypatch.setattr(torch.distributed, "new_group", lambda **_: None)
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *_, **__: iter([(None, 1, 2)]))
    monkeypatch.setattr(World, "_agree_on_device", lambda *_: None)
    device = torch.device("cuda", 1)
    World(1, 2, 1, device).__enter__()
    assert given["device_id"] == device


@pytest.mark.parametrize(
    ("half", "rounding"), [({}, ROUNDING), pytest.param(HALF, 0.02, marks=pytest.mark.slow)], ids=["fp32", "half"]
)
def test_two_processes_train_as_one_does(tiny, tmp_path, half, rounding):
    """With sampling, mixup, CutMix, stochastic layers, other accumulation, and on a host whose name nothing can look up."""
    changes = {"data__sampling": "sqrt", "schedule__stop_epoch": "2"}
    changes |= {"augment__mixup": "0.8", "augment__cutmix": "1.0"}
    changes |= {"model__drop_path": "0.3", "model__patch_dropout": "0.25"} | half
    run(tiny, tmp_path / "one", train__micro_batch="8", **changes)
    command = flags(tiny, tmp_path / "two", train__micro_batch="2", **changes)
    said_by(launch("train", "rcp/final_b16.yaml", *command, before=UNKNOWN_HOST))
    assert close(losses(tmp_path / "two"), losses(tmp_path / "one"), rounding)
    one, two = (result_of(tmp_path / name)["last"]["raw"] for name in ("one", "two"))
    assert two["samples"] == one["samples"] and (half or two["top1"] == one["top1"])


@pytest.mark.slow
@pytest.mark.parametrize(("half", "rounding"), [({}, ROUNDING), (HALF, 0.02)], ids=["fp32", "half"])
def test_two_processes_train_as_graphs_as_one_does_eagerly(tiny, tmp_path, half, rounding):
    """With accumulation, and after a stop. Each process records its own pass, and gradients are averaged between them."""
    changes = {"train__micro_batch": "2", "model__drop_path": "0.3"} | half
    run(tiny, tmp_path / "one", **changes)
    (tmp_path / "sitecustomize.py").write_text(GRAPH)
    for epochs in ("1", "3"):
        command = flags(tiny, tmp_path / "two", train__step="graph", schedule__stop_epoch=epochs, **changes)
        said_by(launch("train", "rcp/final_b16.yaml", *command, PYTHONPATH=f"{tmp_path}:{Path.cwd()}"))
    starts = logged(tmp_path / "two", "start")
    assert [(start["step_mode"], start["world_size"]) for start in starts] == [("graph", 2)] * 2
    assert close(losses(tmp_path / "two"), losses(tmp_path / "one"), rounding)


@pytest.mark.slow
def test_metrics_and_predictions_of_three_processes_are_those_of_one(tiny, whole, tmp_path):
    alone = msgspec.to_builtins(evaluate_checkpoint(whole, None, "cpu", csv=tmp_path / "one.csv"))
    command = ["eval", str(whole), "--device", "cpu", "--json", "--csv", str(tmp_path / "three.csv")]
    out, said = launch(*command, processes=3).communicate(timeout=200)
    together = json.loads(out)
    assert together.keys() == alone.keys(), said
    for name, value in alone.items():
        assert together[name] == to_rounding(value), name
    three, one = ((tmp_path / f"{name}.csv").read_text().splitlines() for name in ("three", "one"))
    assert [line.split(",")[:4] for line in three] == [line.split(",")[:4] for line in one]


@pytest.mark.slow
def test_bad_input_of_one_process_ends_all_with_its_line_and_exit_code_2(tiny, tmp_path):
    """A damaged sample: the process that reads it prints the error, the other one does not exit with 75."""
    beton = Beton.open(tiny["data.train"])
    data = bytearray(beton.path.read_bytes())
    order = np.argsort(epoch_words(0, 0, 48), kind="stable")
    bad = int(order[8 * 2 + 6])  # third step, second process's half of the batch
    end = int(beton.pointers[bad] + beton.sizes[bad])
    data[end - int(beton.sizes[bad]) // 2 : end] = bytes(int(beton.sizes[bad]) // 2)
    damaged = tmp_path / "damaged.beton"
    damaged.write_bytes(data)
    said = said_by(launch("train", "rcp/final_b16.yaml", *flags(tiny, tmp_path / "run", data__train=str(damaged))), 2)
    assert f"sample {bad}" in said and "damaged JPEG data" in said and "Traceback" not in said


@pytest.mark.slow
def test_processes_whose_run_directory_is_in_use_end_with_that_line(tiny, tmp_path):
    with lock_run(tmp_path / "run"):
        said = said_by(launch("train", "rcp/final_b16.yaml", *flags(tiny, tmp_path / "run")), 2)
    assert "is in use by another process. Wait for it" in said
    assert "Traceback" not in said and "same command" not in said


@pytest.mark.slow
def test_processes_with_other_data_or_another_recipe_do_not_train_together(tiny, tmp_path):
    for change, what in (({"data__train": tiny["data.val"]}, "data"), ({"optim__lr": "2e-3"}, "recipes")):
        both = [
            launch(
                "train", "rcp/final_b16.yaml", *flags(tiny, tmp_path / "run", **(change if rank else {})), processes=1,
                options=node(rank),
            )
            for rank in (0, 1)
        ]  # fmt: skip
        ends = [(p.communicate(timeout=200)[1], p.returncode) for p in both]
        assert [code for _, code in ends] == [2, 2], ends
        assert all(f"have different {what}." in said and "Traceback" not in said for said, _ in ends), ends
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_crash_of_one_process_exits_with_1_and_names_it(tiny, tmp_path):
    """Its peer only loses the connection: both end with 1, and the peer names the process."""
    (tmp_path / "sitecustomize.py").write_text(CRASH)
    command = flags(tiny, tmp_path / "run")
    said = said_by(launch("train", "rcp/final_b16.yaml", *command, PYTHONPATH=f"{tmp_path}:{Path.cwd()}"), 1)
    assert "process 1 ended with ZeroDivisionError. See its output" in said


@pytest.mark.slow
def test_a_first_process_that_is_killed_is_told_by_another_one(tiny, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(KILLED)
    command = flags(tiny, tmp_path / "run")
    started = launch("train", "rcp/final_b16.yaml", *command, PYTHONPATH=f"{tmp_path}:{Path.cwd()}")
    assert said_by(started, EXIT_REQUEUE).count("another process died or stopped responding") == 1


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "abc"}, "RANK is 'abc', but must be a whole number. Start with torchrun"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2', but must be a whole number"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is not set. Start with torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "WORLD_SIZE is 2, but MASTER_ADDR is not set"),
    ],
)
def test_variables_that_torchrun_does_not_set_are_one_line(whole, monkeypatch, refused, environment, message):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert message in refused(["eval", str(whole), "--device=cpu"])


@pytest.mark.parametrize(("options", "warns"), [(["--max-restarts=3"], True), ([], False)])
def test_the_launcher_warns_of_restarts(monkeypatch, capsys, options, warns):
    started = []
    monkeypatch.setattr(launch_module, "run", started.append)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv(LAUNCHER, "0")
    assert launch_module.main([*options, "--nproc-per-node", "2", "train", "final_b16"]) == 0 and len(started) == 1
    said = capsys.readouterr().err
    assert ("--max-restarts starts all processes again after any error" in said) is warns


def test_exit_codes_of_processes_are_ranked():
    codes = ({75, -15}, {2, -15}, {2, 75}, {1}, {-9}, {1, 75}, {1, 2})
    assert [exit_code(c) for c in codes] == [75, 2, 2, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("processes", "codes", "code", "said"),
    [
        ("2", [-9], EXIT_REQUEUE, [0]), ("2", [-9, -15], EXIT_REQUEUE, [0]), ("2", [-9, 143], EXIT_REQUEUE, [0]),
        ("2", [-15, -9], EXIT_REQUEUE, [1]), ("2", [-9, EXIT_REQUEUE], EXIT_REQUEUE, []), ("2", [-9, 2], 2, []),
        ("2", [-9, 1], 1, []), ("2", [-15], 1, []), ("2", [143], 1, []), ("1", [-9], 1, []),
    ],
)  # fmt: skip
def test_a_process_that_is_killed_before_another_notices_is_told_by_the_launcher(
    monkeypatch, capsys, tmp_path, processes, codes, code, said
):
    def killed(_: object) -> None:
        none = str(tmp_path / "none")
        raise ChildFailedError("cli", {rank: ProcessFailure(rank, 1234, c, none) for rank, c in enumerate(codes)})

    monkeypatch.setattr(launch_module, "run", killed)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv(LAUNCHER, "0")
    assert launch_module.main(["--nproc-per-node", processes, "train", "final_b16"]) == code
    line = r"another process died or stopped responding \(rank (\d) was ended by SIGKILL\). Run the same command again"
    assert list(map(int, re.findall(line, capsys.readouterr().err))) == said


def test_a_lost_process_is_one_line(monkeypatch):
    monkeypatch.setattr(World, "__enter__", lambda world: world)
    monkeypatch.setattr(World, "__exit__", lambda *_: None)
    said = r"stopped responding \(Read error .*: Connection reset by peer\). Run the same command again$"
    with pytest.raises(PeerLost, match=said), connected(World(0, 2, 0, torch.device("cpu"))):
        raise RuntimeError("[/pytorch/gloo/pair.cc:537] Read error [10.0.0.2]:55496: Connection reset by peer")


@pytest.mark.slow
def test_processes_wait_for_the_choice_of_a_step_as_long_as_for_anything_else(tiny, tmp_path):
    """Process 0 measures for ever. The other one gives up after train.timeout_minutes, and tells what process 0 cannot."""
    (tmp_path / "sitecustomize.py").write_text(ENDLESS_MEASUREMENT)
    options = flags(tiny, tmp_path / "run", train__step="measure", train__timeout_minutes="0.1")
    said = said_by(launch("train", "rcp/final_b16.yaml", *options, PYTHONPATH=f"{tmp_path}:{Path.cwd()}"), EXIT_REQUEUE)
    assert said.count("another process died or stopped responding") == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_checkpoints_and_exits_with_75(tiny, tmp_path, number):
    run(tiny, tmp_path / "whole")
    command = ("train", "rcp/final_b16.yaml", *flags(tiny, tmp_path / "cut", train__checkpoint_steps="0"))
    process = launch(*command)
    wait_for(lambda: len(losses(tmp_path / "cut")) >= 3, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGINT else EXIT_REQUEUE), said
    assert said.count("The same command continues") == 1 and list_checkpoints(tmp_path / "cut" / "checkpoints")
    assert launch(*command).wait(timeout=200) == 0
    assert close(losses(tmp_path / "cut"), losses(tmp_path / "whole"))


@pytest.fixture
def two_hosts():
    """Two network namespaces, joined by a virtual Ethernet pair: (name, address, interface) of each."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    tag = f"ft{os.getpid() % 100000}"
    hosts = [(f"{tag}{c}", f"10.77.0.{i}", f"v{tag}{c}") for i, c in enumerate("ab", 1)]
    if ip("netns", "add", hosts[0][0], check=False) != 0:
        pytest.skip("this machine does not let network namespaces be made")
    try:
        ip("netns", "add", hosts[1][0])
        ip("link", "add", hosts[0][2], "type", "veth", "peer", "name", hosts[1][2])
        for name, address, interface in hosts:
            ip("link", "set", interface, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", interface)
            ip("-n", name, "link", "set", interface, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield hosts
    finally:
        for name, _, _ in hosts:
            ip("netns", "del", name, check=False)


def ip(*arguments: str, check: bool = True) -> int:
    return subprocess.run(["ip", *arguments], check=check, capture_output=True).returncode


@pytest.mark.slow
def test_a_host_that_is_cut_off_ends_the_run_with_one_line_and_the_run_resumes(tiny, tmp_path, two_hosts):
    timeout_seconds, grace_seconds = 12, 60
    run(tiny, tmp_path / "whole", schedule__epochs="20")
    command = flags(tiny, tmp_path / "run", schedule__epochs="20", train__timeout_minutes=str(timeout_seconds / 60))

    def start(port: int) -> list[subprocess.Popen]:
        return [
            launch(
                "train", "rcp/final_b16.yaml", *command, processes=1, before=("ip", "netns", "exec", name),
                options=node(rank, two_hosts[0][1], port), GLOO_SOCKET_IFNAME=interface,
            )
            for rank, (name, _, interface) in enumerate(two_hosts)
        ]  # fmt: skip

    running = start(29611)
    wait_for(lambda: len(losses(tmp_path / "run")) >= 7, *running)
    ip("-n", two_hosts[1][0], "link", "set", two_hosts[1][2], "down")
    cut = time.monotonic()
    said = [p.communicate(timeout=timeout_seconds + grace_seconds)[1] for p in running]
    assert time.monotonic() - cut < timeout_seconds + grace_seconds
    assert [p.returncode for p in running] == [EXIT_REQUEUE, EXIT_REQUEUE], said
    assert all("another process died or stopped responding" in text for text in said), said
    assert len(losses(tmp_path / "run")) < 6 * 20
    ip("-n", two_hosts[1][0], "link", "set", two_hosts[1][2], "up")
    again = start(29612)
    ends = [p.communicate(timeout=200) for p in again]
    assert [p.returncode for p in again] == [0, 0], ends
    assert close(losses(tmp_path / "run"), losses(tmp_path / "whole"))


SHELL = "{python} -c '{process}' & echo $!; wait"
PROCESS = """
from fastft.machine.distributed import find_world
print("connecting", flush=True)
with find_world("cpu"):
    pass
"""
UNREACHABLE = {
    "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29699",
}  # fmt: skip


def test_a_process_that_is_connecting_ends_in_one_line_when_its_launcher_is_killed(tmp_path):
    """torchrun, killed with SIGKILL before its store answered: here a shell, and no store at all."""
    script = SHELL.format(python=sys.executable, process=PROCESS.replace("'", '"'))
    with (tmp_path / "errors").open("w") as errors:
        shell = subprocess.Popen(
            ["bash", "-c", script], stdout=subprocess.PIPE, stderr=errors, text=True,
            env=os.environ | UNREACHABLE | {STARTED_BY_TORCHRUN: "none", "TORCHELASTIC_USE_AGENT_STORE": "True"},
        )  # fmt: skip
    process = int(shell.stdout.readline())
    assert shell.stdout.readline() == "connecting\n"
    time.sleep(1)
    assert Path(f"/proc/{process}").exists()
    shell.send_signal(signal.SIGKILL)
    shell.wait()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{process}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    last = (tmp_path / "errors").read_text().splitlines()[-1]
    assert last == "fastft: error: the launcher ended before all processes were connected. Start it again"


def test_a_launcher_that_ended_before_the_connection_began_is_noticed(monkeypatch):
    """While modules are imported, for seconds: the process has another parent by then."""
    left: list[int] = []
    monkeypatch.setenv(STARTED_BY_TORCHRUN, "none")
    monkeypatch.setenv(LAUNCHER, str(os.getppid() + 1))
    monkeypatch.setattr("os._exit", left.append)
    with exit_without_launcher():
        time.sleep(0.7)
    assert left == [EXIT_REQUEUE]
