"""Every command on machines and in pipes that differ from a developer's terminal."""

import shutil
import subprocess
from collections.abc import Sequence
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
@pytest.mark.parametrize("shell", PIPES.values(), ids=PIPES)
def test_every_command_succeeds_when_its_output_is_closed(tiny, whole, tmp_path, shell):
    commands = everyday_commands(tiny, whole, tmp_path)
    codes = {name: exit_code(command, shell) for name, command in commands.items()}
    assert {name: code for name, code in codes.items() if code} == {}
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
    commands = everyday_commands(*escaping)
    assert [name for name, command in commands.items() if "\x1b" in printed(command)] == []
