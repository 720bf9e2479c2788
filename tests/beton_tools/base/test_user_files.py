"""Regular files are opened, all else is refused in one line; files appear under their name when they are complete."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beton_tools.base.atomic import _found_partials, atomic_path, check_writable, scratch_folder
from beton_tools.base.errors import UserError
from beton_tools.base.user_files import check_user_file, open_own, open_user_file, read_user_file


@pytest.fixture
def special(tmp_path: Path) -> list[tuple[str, str]]:
    """(reason in the error message, path) of everything but a regular file."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link to fifo").symlink_to("fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
    return [
        ("a FIFO", str(tmp_path / "fifo")),
        ("a FIFO", str(tmp_path / "link to fifo")),
        ("a directory", str(tmp_path / "directory")),
        ("a socket", str(tmp_path / "socket")),
        ("a device", "/dev/zero"),
        ("Too many levels of symbolic links", str(tmp_path / "loop")),
        ("No such file", str(tmp_path / "missing")),
        ("not a valid path", str(tmp_path / "nul\0")),
        ("not a valid path: 'utf-8'", "surrogate\ud800"),
        ("File name too long", "x" * 5000),
    ]


@pytest.mark.parametrize("read", [open_user_file, check_user_file, lambda p, e: read_user_file(p, 10, e)])
def test_everything_but_a_regular_file_is_refused_at_once(special, read):
    for reason, path in special:
        began = time.monotonic()
        with pytest.raises(UserError, match=reason) as caught:
            read(path, "a recipe")
        assert time.monotonic() - began < 5
        assert str(caught.value).endswith(". Give a recipe")


def test_a_fifo_that_appears_after_the_check_does_not_block(tmp_path, monkeypatch):
    path, regular = tmp_path / "x", tmp_path / "regular"
    os.mkfifo(path)
    regular.touch()
    status = regular.stat()
    monkeypatch.setattr("beton_tools.base.user_files.stat_path", lambda _: status)
    with pytest.raises(UserError, match="a FIFO, not a regular file"):
        open_user_file(path)


def test_no_descriptor_is_left_open(special, tmp_path):
    (tmp_path / "big").write_bytes(bytes(11))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in [*(path for _, path in special), str(tmp_path / "big")]:
        with pytest.raises(UserError):
            read_user_file(path, 10)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_is_read_up_to_its_limit(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    assert read_user_file(path, 10) == b"0123456789"
    with pytest.raises(UserError, match=r"larger than the limit of 9 bytes.*Give a list"):
        read_user_file(path, 9, "a list")
    with path.open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(UserError, match="larger than the limit of 9 bytes"):
        read_user_file(path, 9)
    with pytest.raises(UserError, match="larger than the limit of 9 bytes"):
        read_user_file("/proc/self/maps", 9)  # its size is given as 0


def test_what_is_written_beside_results_follows_no_link_and_waits_for_no_pipe(special, tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "link").symlink_to("precious")
    (tmp_path / "dangling").symlink_to("made")
    kinds = ("a FIFO", "a directory", "a socket", "a device", "Too many levels of symbolic links")
    paths = [path for kind, path in special if kind in kinds] + [str(tmp_path / "link"), str(tmp_path / "dangling")]
    for path in paths:
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND):
            with pytest.raises(UserError, match=r"not a regular file\. Remove it, or use another folder"):
                open_own(path, flags)
    assert (tmp_path / "precious").read_text() == "kept" and not (tmp_path / "made").exists()
    os.close(open_own(tmp_path / "new", os.O_WRONLY))
    assert (tmp_path / "new").read_bytes() == b""


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
            partial, folder = map(Path, writer.stdout.readline().split())
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
