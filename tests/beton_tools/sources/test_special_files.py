"""FIFOs and devices in the place of data files are refused at once: opening or reading one might never end."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from beton_tools import UserError
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
Make = Callable[[Path], None]


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
@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "train-0.parquet", "data/train.tar"])
def test_archives_of_a_split(tmp_path, make, name):
    (tmp_path / "data").mkdir()
    make(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: cannot be read .*, not a regular file"):
        open_source(tmp_path, "train")


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
