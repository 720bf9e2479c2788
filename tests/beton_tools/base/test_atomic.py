"""Files that appear under their name when they are complete, and paths that cannot become one."""

import subprocess
import sys
from pathlib import Path

import pytest

from beton_tools.base.atomic import _found_partials, atomic_path, check_writable, scratch_folder
from beton_tools.base.errors import UserError


def test_a_failed_write_leaves_the_earlier_file(tmp_path):
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
def test_a_path_that_cannot_become_a_file_is_refused(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    check_writable(tmp_path / "a.csv")
    check_writable(tmp_path / "file")
    with pytest.raises(UserError, match=message):
        check_writable(tmp_path / name)


def test_directories_that_will_be_made_need_not_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("average").mkdir()
    check_writable(Path("new/average"), makes_directories=True)  # of the same name as another directory
    Path("file").touch()
    with pytest.raises(UserError, match="/file is not a directory"):
        check_writable(Path("file/a/b"), makes_directories=True)


def test_two_writers_of_one_path_do_not_share_a_file(tmp_path):
    path = tmp_path / "p.csv"
    with atomic_path(path) as first:
        first.write_text("first")
        with atomic_path(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed_and_what_another_one_writes_is_kept(tmp_path):
    code = "import os, sys\nfrom pathlib import Path\nfrom beton_tools.base.atomic import atomic_path, scratch_folder\n"
    code += "with atomic_path(Path(sys.argv[1])) as p, scratch_folder(Path(sys.argv[1])) as f:\n"
    code += "    p.write_text('half'); (f / 'x').touch(); print(p, f, flush=True); {}"
    for path, then, stays in ((tmp_path / "a", "os._exit(9)", False), (tmp_path / "b", "input()", True)):
        command = [sys.executable, "-c", code.format(then), str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
            partial, folder = map(Path, writer.stdout.readline().split())  # type: ignore[union-attr]
            if not stays:
                writer.wait()
            _found_partials.cache_clear()
            with atomic_path(path) as own, scratch_folder(path) as own_folder:
                own.write_text("whole")
                assert (own_folder / "x").exists() is False
            assert partial.exists() is folder.exists() is stays
            writer.communicate("\n")
        assert path.read_text() == ("half" if stays else "whole")
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}


def test_a_planted_link_is_not_written_through(tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda n: "00000000")
    (tmp_path / ".partial-00000000-a").symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError), atomic_path(tmp_path / "a"):
        pass
    assert not (tmp_path / "precious").exists()
