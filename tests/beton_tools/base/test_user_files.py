"""Regular files are opened; everything else is refused at once, in one line."""

import os
import socket
import time
from pathlib import Path

import pytest

from beton_tools import UserError
from beton_tools.base.user_files import check_user_file, open_own, open_user_file, read_user_file, read_user_text


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
            read(path, "a recipe")  # type: ignore[operator]
        assert time.monotonic() - began < 5
        assert str(caught.value).endswith("; give a recipe")


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
    with pytest.raises(UserError, match=r"larger than the limit of 9 bytes.*give a list"):
        read_user_file(path, 9, "a list")
    with path.open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(UserError, match="larger than the limit of 9 bytes"):
        read_user_file(path, 9)
    with pytest.raises(UserError, match="larger than the limit of 9 bytes"):
        read_user_file("/proc/self/maps", 9)  # its size is given as 0


def test_text_must_be_utf8(tmp_path):
    path = tmp_path / "x"
    path.write_text("Größe", encoding="utf-8")
    assert read_user_text(path, 100) == "Größe"
    path.write_text("Größe", encoding="latin-1")
    with pytest.raises(UserError, match=r"x: not UTF-8 text \(byte 2\)"):
        read_user_text(path, 100)


def test_what_is_written_beside_results_follows_no_link_and_waits_for_no_pipe(special, tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "link").symlink_to("precious")
    (tmp_path / "dangling").symlink_to("made")
    kinds = ("a FIFO", "a directory", "a socket", "a device", "Too many levels of symbolic links")
    paths = [path for kind, path in special if kind in kinds] + [str(tmp_path / "link"), str(tmp_path / "dangling")]
    for path in paths:
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND):
            with pytest.raises(UserError, match="not a regular file; remove it, or use another folder"):
                open_own(path, flags)
    assert (tmp_path / "precious").read_text() == "kept" and not (tmp_path / "made").exists()
    os.close(open_own(tmp_path / "new", os.O_WRONLY))
    assert (tmp_path / "new").read_bytes() == b""
