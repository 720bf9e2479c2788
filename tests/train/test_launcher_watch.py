"""A process that is still connecting ends with its launcher."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastft.train.distributed import LAUNCHER, STARTED_BY_TORCHRUN, exit_without_launcher
from fastft.train.exceptions import EXIT_REQUEUE

SHELL = "{python} -c '{process}' & echo $!; wait"
PROCESS = """
from fastft.train.distributed import find_world
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
    assert shell.stdout is not None
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
    assert last == "fastft: error: the launcher ended before all processes were connected; start it again"


def test_nothing_is_watched_after_the_connection_or_without_torchrun(monkeypatch):
    parents = iter([1, 2, 3, 4])
    monkeypatch.setattr("os.getppid", lambda: next(parents))
    monkeypatch.setattr("os._exit", lambda code: pytest.fail("it must not exit"))
    monkeypatch.delenv(STARTED_BY_TORCHRUN, raising=False)
    with exit_without_launcher():
        time.sleep(0.7)
    monkeypatch.setenv(STARTED_BY_TORCHRUN, "none")
    with exit_without_launcher():
        pass
    time.sleep(0.7)


def test_a_launcher_that_ended_before_the_connection_began_is_noticed(monkeypatch):
    """While modules are imported, for seconds: the process has another parent by then."""
    left: list[int] = []
    monkeypatch.setenv(STARTED_BY_TORCHRUN, "none")
    monkeypatch.setenv(LAUNCHER, str(os.getppid() + 1))
    monkeypatch.setattr("os._exit", left.append)
    with exit_without_launcher():
        time.sleep(0.7)
    assert left == [EXIT_REQUEUE]
