"""Files that appear under their name when they are complete, and paths that cannot become one."""

from pathlib import Path

import pytest

from beton_tools.atomic import atomic_path, check_writable
from beton_tools.errors import UserError


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
        ("no/a.csv", "no/a.csv: cannot be written \\(no is not a directory"),
        ("file/a.csv", "file/a.csv: cannot be written \\(file is not a directory"),
    ],
)
def test_a_path_that_cannot_become_a_file_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    check_writable(tmp_path / "a.csv")
    check_writable(tmp_path / "file")
    with pytest.raises(UserError, match=message):
        check_writable(tmp_path / name)
