"""Files that appear under their name when they are complete, and paths that cannot become one."""

import os
from pathlib import Path

import pytest

from beton_tools.base.atomic import atomic_path, check_writable
from beton_tools.base.errors import UserError


def test_a_failed_write_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(RuntimeError), atomic_path(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and path.read_text() == "before"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "folder: cannot be written \\(it is a directory"),
        ("no/a.csv", "no/a.csv: cannot be written \\(.*/no does not exist"),
        ("file/a.csv", "file/a.csv: cannot be written \\(.*/file is not a directory"),
    ],
)
def test_a_path_that_cannot_become_a_file_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    check_writable(tmp_path / "a.csv")
    check_writable(tmp_path / "file")
    with pytest.raises(UserError, match=message):
        check_writable(tmp_path / name)


def test_directories_that_will_be_made_need_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("average").mkdir()
    check_writable(Path("new/average"), makes_directories=True)  # of the same name as another directory
    Path("file").touch()
    with pytest.raises(UserError, match="/file is not a directory"):
        check_writable(Path("file/a/b"), makes_directories=True)


def test_a_directory_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(UserError, match="no permission to write into"):
        check_writable(tmp_path / "a.csv")
