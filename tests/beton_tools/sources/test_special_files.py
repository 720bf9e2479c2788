"""FIFOs, devices and links that lead nowhere, in the place of data files, are refused or skipped at once."""

import os
from pathlib import Path

import pytest

from beton_tools import UserError
from beton_tools.read.manifest import Manifest
from beton_tools.sources import open_source
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from tests.beton_tools.conftest import devkit_files, tar_of

pytestmark = pytest.mark.timeout(60)  # the failure that these tests look for is a hang


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


SPECIAL = pytest.mark.parametrize("make", [fifo, device])


TRUTH = "ILSVRC2012_validation_ground_truth.txt"
SHARD = {"s.tar": tar_of({"a.jpg": b"x", "a.cls": b"0"})}
FLAT = {"val/a.jpg": b"x"}


@SPECIAL
@pytest.mark.parametrize(
    ("name", "files", "opened"),
    [
        *((name, {}, opened) for name in ("s.tar", "n01440764.tar", "a.parquet") for opened in ("", name)),
        *((name, FLAT, "val") for name in ("val.txt", "LOC_val_solution.csv", "ILSVRC2012_devkit_t12.tar.gz", TRUTH)),
        ("meta.mat", FLAT | {TRUTH: devkit_files(["n01440764"])[TRUTH]}, "val"),
        ("classes.txt", SHARD, ""),
        ("LOC_synset_mapping.txt", SHARD | {"classes.txt": b"n01440764\n"}, ""),
    ],
)  # fmt: skip
def test_archives_and_lists(tmp_path, make, name, files, opened):
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    make(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: cannot be read .*, not a regular file"):
        open_source(tmp_path / opened)


@SPECIAL
def test_entries_of_class_folders_are_skipped_and_listed(photo_folder, make):
    make(photo_folder / "n01440764" / "a.jpg")
    out = photo_folder.parent / "o.beton"
    with pytest.raises(UserError, match=r"n01440764/a\.jpg: cannot be read .*, not a regular file"):
        convert_folder(photo_folder, out, WriteOptions(workers=0))
    manifest = convert_folder(photo_folder, out, WriteOptions(workers=0, on_error="skip"))
    assert [name for name, _ in manifest.skipped] == ["n01440764/a.jpg"]
    assert manifest.num_samples == 24


@SPECIAL
@pytest.mark.parametrize("name", ["o.beton.part", "o.beton.part.journal"])
def test_files_of_an_interrupted_conversion(photo_folder, make, name):
    make(photo_folder.parent / name)
    with pytest.raises(UserError, match=rf"{name}: .*not a regular file"):
        convert_folder(photo_folder, photo_folder.parent / "o.beton", WriteOptions(workers=0))


@SPECIAL
def test_temporary_files_are_replaced(photo_folder, make):
    new = photo_folder.parent / "o.beton.part.journal.new"
    make(new)
    out = photo_folder.parent / "o.beton"
    assert convert_folder(photo_folder, out, WriteOptions(workers=0)).num_samples == 24 and not new.exists()


def test_folders_with_the_names_of_label_files_are_ignored(tmp_path):
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "a.jpg").write_bytes(b"x")
    (tmp_path / "val" / "val.txt").mkdir()
    (tmp_path / "val.txt").write_text("a.jpg cat\n")
    assert open_source(tmp_path / "val").classes == ("cat",)


def convert(photo_folder: Path, on_error: str = "skip") -> Manifest:
    return convert_folder(photo_folder, photo_folder.parent / "o.beton", WriteOptions(workers=0, on_error=on_error))


@pytest.mark.parametrize("target", ["a.jpg", "b.jpg", "missing", "..", ".", "../..", "/"])
def test_links_inside_a_class_folder(photo_folder, target):
    link = photo_folder / "n01440764" / "a.jpg"
    link.symlink_to(target)
    if target == "b.jpg":
        (photo_folder / "n01440764" / "b.jpg").symlink_to("a.jpg")
    with pytest.raises(UserError, match=r"n01440764/a\.jpg: cannot be read \(.*\). Pass --on-error skip"):
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
    with pytest.raises(UserError, match="images have no labels"):
        open_source(flat)
    (flat / "s.tar").symlink_to("s.tar")
    with pytest.raises(UserError, match=r"s\.tar: cannot be read \(Too many levels of symbolic links\)"):
        open_source(flat)


def test_a_class_that_is_a_link_to_a_parent_folder(photo_folder):
    (photo_folder / "up").symlink_to("..")
    manifest = convert(photo_folder)
    assert [name for name, _ in manifest.skipped] == ["up"]
    assert manifest.num_samples == 24
