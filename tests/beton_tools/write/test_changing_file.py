"""A `.beton` that is truncated or overwritten while a command reads it ends the command with one line, not with SIGBUS."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from beton_tools import UserError
from beton_tools.read.format import Beton
from beton_tools.sources import open_source
from beton_tools.write.images import decode_sample
from beton_tools.write.writer import WriteOptions, write_beton

# runs commands on argv[1], which changes as argv[2] says each time that it has been opened and before it is read
COMMANDS = """
import os, shutil, sys
from pathlib import Path
from beton_tools import cli
from beton_tools.read.format import Beton
path, change, folder = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
whole, truly_open = path.read_bytes(), Beton.open
def open_then_change(given):
    beton = truly_open(given)
    if change == "half":
        os.truncate(path, len(whole) // 2)
    if change == "empty":
        os.truncate(path, 0)
    if change == "overwritten":
        path.write_bytes(whole[::-1])
    if change == "renamed":
        (folder / "other").write_bytes(b"another file")
        (folder / "other").rename(path)
    return beton
Beton.open = open_then_change
for command in (
    ["verify"], ["verify", "--no-decode"], ["stats"], ["sheet", "--out", str(folder / "sheet.png")],
    ["extract", "--out", str(folder / "files")],
):
    path.write_bytes(whole)
    code = cli.main([command[0], str(path), *command[1:]])
    print(command[0], code, file=sys.stderr)
"""


@pytest.fixture
def written(photo_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "photos.beton"
    write_beton(path, open_source(photo_folder), WriteOptions(workers=0, page_size=1 << 16))
    return path


@pytest.mark.parametrize(
    "change", ["half", *(pytest.param(c, marks=pytest.mark.slow) for c in ("empty", "overwritten", "renamed"))]
)
def test_every_command_ends_with_one_line_that_names_the_file(written, tmp_path, change):
    code = [sys.executable, "-c", COMMANDS, str(written), change, str(tmp_path)]
    done = subprocess.run(code, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # SIGBUS: -7
    lines = done.stderr.splitlines()
    if change == "renamed":  # the file that was opened is still there, without a name
        assert lines == ["verify 0", "verify 0", "stats 0", "sheet 0", "extract 0"]
        return
    assert len(lines) == 10
    for message, end in zip(lines[::2], lines[1::2], strict=True):
        command = end.split()[0]
        assert message.startswith(f"beton {command}: {written}: changed while it was in use (")
        assert end == f"{command} 2"


def test_a_read_behind_the_end_is_an_error_that_names_the_file(written):
    beton = Beton.open(written)
    last = int(np.argmax(beton.pointers))
    os.truncate(written, int(beton.pointers[last]) + 10)
    for read in (beton.image_bytes, beton.read_bytes, lambda i: decode_sample(beton, i)):
        with pytest.raises(UserError, match=r"photos\.beton: changed while it was in use \(it ends at byte"):
            read(last)
    assert len(beton.read_bytes(int(np.argmin(beton.pointers)))) > 100


def test_a_disk_error_is_an_error_that_names_the_file(written, monkeypatch):
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    beton = Beton.open(written)
    monkeypatch.setattr("os.preadv", fail)
    with pytest.raises(UserError, match=r"photos\.beton: cannot be read \(Input/output error\)"):
        beton.image_bytes(0)


def test_a_read_that_returns_less_is_continued(written, monkeypatch):
    beton, truly_read = Beton.open(written), os.preadv
    whole = beton.read_bytes(3)
    monkeypatch.setattr("os.preadv", lambda fd, parts, at: truly_read(fd, [parts[0][:100]], at))
    assert beton.read_bytes(3) == whole


def test_the_descriptor_is_closed_with_the_object(written):
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    beton = Beton.open(written)
    assert beton.read_bytes(0)
    del beton
    with pytest.raises(UserError):
        Beton.open(written.with_name("missing.beton"))
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
