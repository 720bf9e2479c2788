"""Every command on machines and in pipes that differ from a developer's terminal."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from beton_tools.cli import build_parser as beton_parser
from fastft.cli import build_parser
from tests.cli.everyday import BETON, FASTFT, everyday_commands
from tests.cli.test_cli import subcommands

SECONDS = 300  # of a command; a process that never ends is what some of these tests look for


def exit_code(command: Sequence[str], shell: str = '"$@"') -> int:
    """The exit code of a command that a shell runs as `"$@"`."""
    script = ["bash", "-c", shell, "bash", *command]
    return subprocess.run(script, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=SECONDS).returncode


def test_the_everyday_commands_are_all_commands(tiny, whole, tmp_path):
    known = {f"fastft {name}" for name in subcommands(build_parser())} - {"fastft demo"}
    known |= {f"beton {name}" for name in subcommands(beton_parser())}
    assert everyday_commands(tiny, whole, tmp_path).keys() == known


CLOSED = '"$@" <&- >&- 2>&-'
PIPES = {
    "without stdin, stdout and stderr": CLOSED,
    "into head": 'set -o pipefail; "$@" 2>/dev/null | head -1',
    "with nobody who reads": 'set -o pipefail; "$@" 2>&1 | true',
}


@pytest.mark.parametrize("command", [[*FASTFT, "options"], [*BETON, "info", "VAL"]], ids=["fastft", "beton"])
@pytest.mark.parametrize("shell", PIPES.values(), ids=PIPES)
def test_a_command_succeeds_when_its_output_is_closed(tiny, command, shell):
    given = [tiny["data.val"] if word == "VAL" else word for word in command]
    assert exit_code(given, shell) == 0
    assert exit_code([*given, "--nonsense"], shell) == 2


@pytest.mark.slow
def test_every_command_succeeds_when_its_output_is_closed(tiny, whole, tmp_path):
    """The other pipes are tried with one command of each program, above: each command takes seconds to import torch."""
    check_all_end(everyday_commands(tiny, whole, tmp_path), CLOSED)
    made = {path.name for path in tmp_path.iterdir()}
    assert {"a.beton", "in1k", "sweep", "preview.png", "average", "model.safetensors", "report.html", "bench"} <= made
    assert (tmp_path / "run" / "result.json").exists()


@pytest.fixture
def escaping(tiny, whole, tmp_path) -> tuple[dict[str, str], Path, Path]:
    """(options like `tiny`, a run, a folder for outputs), all below a folder whose name would clear a terminal's screen."""
    folder = tmp_path / "a\x1b[2Jb"
    data = Path(tiny["data.train"]).parent
    shutil.copytree(data, folder / "data")
    shutil.copytree(whole, folder / "run")
    (folder / "out").mkdir()
    moved = {key: value.replace(str(data), str(folder / "data")) for key, value in tiny.items()}
    return moved, folder / "run", folder / "out"


def printed(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", ["beton info", "beton verify"])
def test_a_path_cannot_control_the_terminal(escaping, name):
    text = printed(everyday_commands(*escaping)[name])
    assert r"a\x1b[2Jb" in text and "\x1b" not in text


@pytest.mark.slow
def test_no_command_lets_a_path_control_the_terminal(escaping):
    """Those that are given a path, except as an option of a recipe: these are refused."""
    commands = {
        name: command
        for name, command in everyday_commands(*escaping).items()
        if any("\x1b" in word for word in command) and not any(word.startswith("--data.") for word in command)
    }
    assert len(commands) >= 11
    assert [name for name, command in commands.items() if "\x1b" in printed(command)] == []


# those that use threads
ON_ONE_CPU = (
    "fastft train",
    "fastft predict",
    "fastft convert folder",
    "fastft bench",
    "fastft doctor",
    "beton verify",
)


# one CPU: containers and the smallest cloud machines; Numba's TBB layer waits for ever there when a process ends --------


@pytest.fixture
def quota() -> Iterator[Path]:
    """`cgroup.procs` of a new control group that may use one CPU."""
    version_1, folder = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    folder = (version_1 if version_1.is_dir() else folder) / f"fastft-test-{os.getpid()}"
    limits = {"cpu.max": "100000 100000"}
    if version_1.is_dir():
        limits = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "100000"}
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        for name, value in limits.items():
            (folder / name).write_text(value)
        yield folder / "cgroup.procs"
    except OSError as error:
        pytest.skip(f"no quota can be set here: {error}")
    finally:
        deadline = time.monotonic() + 30
        while (folder / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)  # a process that has ended is still listed for a moment
        folder.rmdir()


@pytest.mark.slow
def test_every_command_ends_on_one_core(tiny, whole, tmp_path):
    core = min(os.sched_getaffinity(0))
    commands = everyday_commands(tiny, whole, tmp_path)
    check_all_end({name: commands[name] for name in ON_ONE_CPU}, f'exec taskset -c {core} "$@"')


@pytest.mark.slow
def test_every_command_ends_with_a_quota_of_one_cpu(tiny, whole, tmp_path, quota):
    commands = everyday_commands(tiny, whole, tmp_path)
    check_all_end({name: commands[name] for name in ON_ONE_CPU[:3]}, f'echo $$ > {quota} && exec "$@"')


def check_all_end(commands: dict[str, list[str]], shell: str) -> None:
    codes = {name: exit_code(command, shell) for name, command in commands.items()}
    assert {name: code for name, code in codes.items() if code} == {}
