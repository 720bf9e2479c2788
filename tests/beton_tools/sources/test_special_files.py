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


@SPECIAL
@pytest.mark.parametrize("name", ["s.tar", "n01440764.tar", "a.parquet"])
@pytest.mark.parametrize("by_name", [True, False])
def test_archives(tmp_path: Path, make: Make, name: str, by_name: bool) -> None:
    make(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: cannot be read .*, not a regular file"):
        open_source(tmp_path / name if by_name else tmp_path)


@SPECIAL
@pytest.mark.parametrize(
    "name", ["ILSVRC2012_img_train.tar", "train-0.tar", "train-0.parquet", "data/train.tar"]
)
def test_archives_of_a_split(tmp_path: Path, make: Make, name: str) -> None:
    (tmp_path / "data").mkdir()
    make(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: cannot be read .*, not a regular file"):
        open_source(tmp_path, "train")


@SPECIAL
@pytest.mark.parametrize(
    "name",
    [
        *("val.txt", "LOC_val_solution.csv", "ILSVRC2012_devkit_t12.tar.gz"),
        *("ILSVRC2012_validation_ground_truth.txt", "data/ILSVRC2012_validation_ground_truth.txt"),
    ],
)
def test_labels_of_flat_images(tmp_path: Path, make: Make, name: str) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "val" / "a.jpg").write_bytes(b"x")
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"{Path(name).name}: cannot be read .*, not a regular file"):
        open_source(tmp_path / "val")


@SPECIAL
def test_synsets_of_the_devkit(tmp_path: Path, make: Make) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    truth = "ILSVRC2012_validation_ground_truth.txt"
    (tmp_path / truth).write_bytes(devkit_files(["n01440764"])[truth])
    make(tmp_path / "meta.mat")
    with pytest.raises(UserError, match=r"meta\.mat: cannot be read .*, not a regular file"):
        open_source(tmp_path)


@SPECIAL
def test_lists_of_classes_and_of_class_names(tmp_path: Path, make: Make) -> None:
    (tmp_path / "s.tar").write_bytes(tar_of({"a.jpg": b"x", "a.cls": b"0"}))
    make(tmp_path / "classes.txt")
    with pytest.raises(UserError, match=r"classes\.txt: cannot be read"):
        open_source(tmp_path)
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "classes.txt").write_text("n01440764\n")
    make(tmp_path / "LOC_synset_mapping.txt")
    with pytest.raises(UserError, match=r"LOC_synset_mapping\.txt: cannot be read"):
        open_source(tmp_path)


@SPECIAL
def test_entries_of_class_folders_are_skipped_and_listed(photo_folder: Path, make: Make) -> None:
    make(photo_folder / "n01440764" / "a.jpg")
    out = photo_folder.parent / "o.beton"
    with pytest.raises(UserError, match=r"n01440764/a\.jpg: cannot be read .*, not a regular file"):
        convert_folder(photo_folder, out, WriteOptions(workers=0))
    manifest = convert_folder(photo_folder, out, WriteOptions(workers=0, on_error="skip"))
    assert [name for name, _ in manifest.skipped] == ["n01440764/a.jpg"]
    assert manifest.num_samples == 24


@SPECIAL
@pytest.mark.parametrize("name", ["o.beton.part", "o.beton.part.journal"])
def test_files_of_an_interrupted_conversion(photo_folder: Path, make: Make, name: str) -> None:
    make(photo_folder.parent / name)
    with pytest.raises(UserError, match=rf"{name}: .*not a regular file"):
        convert_folder(photo_folder, photo_folder.parent / "o.beton", WriteOptions(workers=0))


@SPECIAL
@pytest.mark.parametrize("name", ["o.beton.part.journal.new"])
def test_temporary_files_are_replaced(photo_folder: Path, make: Make, name: str) -> None:
    make(photo_folder.parent / name)
    assert (
        convert_folder(photo_folder, photo_folder.parent / "o.beton", WriteOptions(workers=0)).num_samples
        == 24
    )
    assert not (photo_folder.parent / name).exists()


def test_folders_with_the_names_of_label_files_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "a.jpg").write_bytes(b"x")
    (tmp_path / "val" / "val.txt").mkdir()
    (tmp_path / "val.txt").write_text("a.jpg cat\n")
    assert open_source(tmp_path / "val").classes == ("cat",)
