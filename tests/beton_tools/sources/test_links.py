"""Links that lead nowhere or to a parent folder end no conversion with --on-error skip: they are skipped and listed."""

from pathlib import Path

import pytest

from beton_tools import UserError
from beton_tools.read.manifest import Manifest
from beton_tools.sources import open_source
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions


def convert(photo_folder: Path, on_error: str = "skip") -> Manifest:
    return convert_folder(photo_folder, photo_folder.parent / "o.beton", WriteOptions(workers=0, on_error=on_error))


@pytest.mark.parametrize("target", ["a.jpg", "b.jpg", "missing", "..", ".", "../..", "/"])
def test_links_inside_a_class_folder(photo_folder, target):
    link = photo_folder / "n01440764" / "a.jpg"
    link.symlink_to(target)
    if target == "b.jpg":
        (photo_folder / "n01440764" / "b.jpg").symlink_to("a.jpg")
    with pytest.raises(UserError, match=r"n01440764/a\.jpg: cannot be read \(.*\); pass --on-error skip"):
        convert(photo_folder, "fail")
    manifest = convert(photo_folder)
    expected = ["n01440764/a.jpg", "n01440764/b.jpg"] if target == "b.jpg" else ["n01440764/a.jpg"]
    assert [name for name, _ in manifest.skipped] == expected
    assert manifest.num_samples == 24


def test_a_link_to_itself_beside_the_class_folders_is_no_class(photo_folder):
    (photo_folder / "loop").symlink_to("loop")
    assert len(convert(photo_folder).classes) == 3


def test_a_link_to_itself_as_archive_or_list(photo_folder):
    flat = photo_folder / "n01440764"
    (flat / "val.txt").symlink_to("val.txt")
    with pytest.raises(UserError, match="images without labels"):
        open_source(flat)
    (flat / "s.tar").symlink_to("s.tar")
    with pytest.raises(UserError, match=r"s\.tar: cannot be read \(Too many levels of symbolic links\)"):
        open_source(flat)


def test_a_class_that_is_a_link_to_a_parent_folder(photo_folder):
    (photo_folder / "up").symlink_to("..")
    manifest = convert(photo_folder)
    assert [name for name, _ in manifest.skipped] == ["up"]
    assert manifest.num_samples == 24
