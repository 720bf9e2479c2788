"""A `.beton` that is truncated or overwritten while a command reads it ends the command with one line, not with SIGBUS."""

import os
from pathlib import Path

import pytest

from beton_tools import UserError
from beton_tools.cli import main
from beton_tools.read.format import Beton


@pytest.mark.parametrize("change", ["half", "empty", "overwritten", "renamed"])
def test_every_command_ends_with_one_line_that_names_the_file(photo_beton, tmp_path, monkeypatch, capsys, change):
    """The file changes each time that it has been opened and before it is read; a memory map would end with SIGBUS."""
    whole, truly_open = photo_beton.read_bytes(), Beton.open

    def open_then_change(path: Path) -> Beton:
        beton = truly_open(path)
        if change == "renamed":
            (tmp_path / "other").write_bytes(b"another file")
            (tmp_path / "other").rename(path)
        elif change == "overwritten":
            path.write_bytes(whole[::-1])
        else:
            os.truncate(path, len(whole) // 2 if change == "half" else 0)
        return beton

    monkeypatch.setattr(Beton, "open", open_then_change)
    sheet, files = ["--out", str(tmp_path / "sheet.png")], ["--out", str(tmp_path / "files")]
    commands = (["verify"], ["verify", "--no-decode"], ["sheet", *sheet], ["extract", *files])
    for command, *more in commands:
        photo_beton.write_bytes(whole)
        # what was renamed is still there, without a name
        assert main([command, str(photo_beton), *more]) == (0 if change == "renamed" else 2)
        said = capsys.readouterr().err
        if change != "renamed":
            assert (
                said.startswith(f"beton {command}: {photo_beton}: changed while it was in use (")
                and said.count("\n") == 1
            )


def test_a_disk_error_is_an_error_that_names_the_file(photo_beton, monkeypatch):
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    beton = Beton.open(photo_beton)
    monkeypatch.setattr("os.preadv", fail)
    with pytest.raises(UserError, match=r"photos\.beton: cannot be read \(Input/output error\)"):
        beton.image_bytes(0)


def test_a_read_that_returns_less_is_continued(photo_beton, monkeypatch):
    beton, truly_read = Beton.open(photo_beton), os.preadv
    whole = beton.read_bytes(3)
    monkeypatch.setattr("os.preadv", lambda fd, parts, at: truly_read(fd, [parts[0][:100]], at))
    assert beton.read_bytes(3) == whole
