"""CPU and memory limits of containers and batch jobs apply to the number of threads and to `doctor`."""

import math
import os
from pathlib import Path

import pytest

from beton_tools.base import cgroup
from beton_tools.base.cgroup import memory_limit, process_room, usable_cpus
from fastft.data.loader import default_workers
from fastft.machine.facts import memory_bytes

GIB = 1 << 30


@pytest.fixture
def control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Control group files: this process runs in /job/step, without limits."""
    step = tmp_path / "cgroup/job/step"
    step.mkdir(parents=True)
    for folder in (step, step.parent):
        (folder / "cpu.max").write_text("max 100000\n")
        (folder / "memory.max").write_text("max\n")
    (tmp_path / "own").write_text("4:memory:/elsewhere\n0::/job/step\n")
    monkeypatch.setattr(cgroup, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroup, "OWN", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    return tmp_path / "cgroup"


@pytest.mark.parametrize("group", ["", "job", "job/step"])
def test_limits_of_the_own_group_and_of_its_parents_apply(control_group, group):
    assert usable_cpus() == 16 and memory_limit() is None
    (control_group / group / "cpu.max").write_text("250000 100000\n")
    (control_group / group / "memory.max").write_text(f"{GIB // 4}\n")
    assert usable_cpus() == 2
    assert memory_limit() == GIB // 4
    total, available = memory_bytes()
    assert total == GIB // 4 and available <= GIB // 4


@pytest.mark.parametrize("group", ["", "job", "job/step"])
def test_the_limit_on_processes_of_the_own_group_and_of_its_parents_applies(control_group, group, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (-1, -1))
    assert process_room() == math.inf
    (control_group / "job/step/pids.max").write_text("max\n")
    (control_group / group / "pids.max").write_text("6\n")
    (control_group / group / "pids.current").write_text("2\n")
    assert process_room() == 4


def test_the_limit_on_the_users_processes_applies_except_to_root(control_group, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (10_000_000, 10_000_000))
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert process_room() == math.inf
    monkeypatch.undo()
    own = os.getuid()
    monkeypatch.setattr("resource.getrlimit", lambda _: (10_000_000, 10_000_000))
    monkeypatch.setattr("beton_tools.base.cgroup.os.getuid", lambda: own or 4_000_000)  # nobody's processes
    assert 9_000_000 < process_room() <= 10_000_000


def test_the_smallest_limit_applies(control_group):
    (control_group / "job/cpu.max").write_text("300000 100000\n")
    (control_group / "job/step/cpu.max").write_text("900000 100000\n")
    assert usable_cpus() == 3
    (control_group / "job/step/cpu.max").write_text("50000 100000\n")
    assert usable_cpus() == 1  # half of one
    (control_group / "job/cpu.max").write_text("6400000 100000\n")
    (control_group / "job/step/cpu.max").write_text("6400000 100000\n")
    assert usable_cpus() == 16  # by affinity


@pytest.mark.parametrize("own", ["0::/docker/beyond/sight\n", "4:memory:/job\n", None])
def test_an_invisible_group_has_the_limits_of_the_root(control_group, own):
    """Containers may show the host's group names; systems with cgroup v1 only have no v2 line."""
    cgroup.OWN.unlink() if own is None else cgroup.OWN.write_text(own)
    assert (cgroup.cpu_limit(), cgroup.memory_limit()) == (None, None)
    (control_group / "cpu.max").write_text("400000 100000\n")
    assert usable_cpus() == 4


def test_the_loaders_default_number_of_threads_follows_the_limit(control_group, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert default_workers() == 16
    (control_group / "job/cpu.max").write_text("800000 100000\n")
    assert default_workers() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers() == 2
    (control_group / "job/cpu.max").write_text("max 100000\n")
    # torchrun --numa-binding=node: the CPUs of half of the processes
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16 if process else 8)))
    assert default_workers() == 4


def test_the_memory_limit_of_a_version_1_group_applies(control_group):
    group = control_group / "memory/elsewhere"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_limit() is None
    (group.parent / "memory.limit_in_bytes").write_text(f"{GIB}\n")
    assert memory_limit() == GIB


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
def test_the_cpu_quota_of_a_version_1_group_applies(control_group, controllers):
    """The controllers of one hierarchy share a line. Distributions link each controller's name to its folder."""
    cgroup.OWN.write_text(f"5:memory:/other\n4:{controllers}:/elsewhere/step\n0::/job/step\n")
    group = control_group / "cpu/elsewhere"
    (group / "step").mkdir(parents=True)
    for folder in (group, group / "step"):
        (folder / "cpu.cfs_period_us").write_text("50000\n")
        (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert usable_cpus() == 16
    (group / "cpu.cfs_quota_us").write_text("150000\n")
    assert usable_cpus() == 3
    (control_group / "job/cpu.max").write_text("200000 100000\n")
    assert usable_cpus() == 2
