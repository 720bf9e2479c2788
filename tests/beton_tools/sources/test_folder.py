"""Class folders are read as torchvision's ImageFolder reads them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from beton_tools import UserError
from beton_tools.sources import open_source
from tests.refusals import refuses


def test_classes_images_and_labels_are_those_of_torchvision(photo_folder):
    nested = photo_folder / "n01440764" / "more"
    nested.mkdir()
    (photo_folder / "n01440764" / "n01440764_0.JPEG").rename(nested / "moved.jpeg")
    (photo_folder / "n02123045" / "notes.txt").write_text("not an image")
    (photo_folder / "README.md").write_text("not a class")
    ours, theirs = open_source(photo_folder), ImageFolder(str(photo_folder))
    assert list(ours.classes) == theirs.classes
    listed = [(str(photo_folder / name), label) for name, label in zip(ours.names, ours.labels, strict=True)]
    assert sorted(listed) == sorted(theirs.samples)
    np.testing.assert_array_equal(ours.labels, theirs.targets)


def test_wnids_have_readable_class_names(photo_folder):
    (photo_folder.parent / "LOC_synset_mapping.txt").write_text(
        "n01440764 tench, Tinca tinca\nn02123045 tabby, tabby cat\nn04008634 projectile, missile\n"
    )
    assert open_source(photo_folder).class_names == ("tench, Tinca tinca", "tabby, tabby cat", "projectile, missile")


def test_hidden_files_and_folders_are_ignored(photo_folder):
    (photo_folder / "n01440764" / "._n01440764_0.JPEG").write_bytes(b"\0\5\x16\7")
    (photo_folder / ".thumbnails").mkdir()
    checkpoints = photo_folder / "n02123045" / ".ipynb_checkpoints"
    checkpoints.mkdir()
    shutil.copy(photo_folder / "n02123045" / "n02123045_0.JPEG", checkpoints)
    (photo_folder / "n02123045" / ".DS_Store").write_bytes(b"")
    source = open_source(photo_folder)
    assert len(source.classes) == 3
    assert len(source.names) == 24
    assert source.left_out == {}


def test_files_that_are_not_images_are_counted_by_suffix(photo_folder):
    for name in ("a.txt", "b.TXT", "more/c.xml", "README"):
        (photo_folder / "n01440764" / name).parent.mkdir(exist_ok=True)
        (photo_folder / "n01440764" / name).write_text("not an image")
    (photo_folder / "beside.txt").write_text("outside the classes")
    assert open_source(photo_folder).left_out == {".txt": 2, ".xml": 1, "": 1}


def test_error_names_the_suffixes_when_classes_hold_no_images(tmp_path):
    (tmp_path / "cups").mkdir()
    (tmp_path / "cups" / "cup.cr2").write_bytes(b"")
    with pytest.raises(UserError, match=r"no images in class folders below it \(but 1 \.cr2\)"):
        open_source(tmp_path)


def test_labels_index_the_given_classes(photo_folder):
    source = open_source(photo_folder, classes=("n00000001", "n01440764", "n02123045", "n04008634"))
    assert set(source.labels.tolist()) == {1, 2, 3}
    with pytest.raises(UserError, match="'n04008634' is not one of the 2"):
        open_source(photo_folder, classes=("n01440764", "n02123045"))


@pytest.mark.parametrize("name", ["n01440764.tar", "train-00000.parquet"])
def test_archives_beside_class_folders_are_refused(photo_folder, name):
    (photo_folder / name).write_bytes(bytes(1024))
    with pytest.raises(UserError, match=f"both class folders and archives .{name}.. Move one"):
        open_source(photo_folder)


def test_links_to_other_folders_are_followed(photo_folder):
    (photo_folder / "n00000001").symlink_to(photo_folder / "n01440764")
    source = open_source(photo_folder)
    assert len(source.names) == len(ImageFolder(str(photo_folder)).samples) == 32


@pytest.mark.parametrize("make", ["missing", "empty", "splits"])
def test_unusable_folders_are_refused_in_one_line(photo_folder, make):
    root = photo_folder.parent / "root"
    if make == "empty":
        (root / "n01440764").mkdir(parents=True)
    if make == "splits":
        (root / "val").mkdir(parents=True)
        (photo_folder).rename(root / "train")
        (root / "val" / "n01440764").mkdir()
    expected = {"missing": "no such file", "empty": "no images", "splits": "contains splits"}[make]
    with refuses(expected):
        open_source(root)


def test_more_images_outside_than_inside_class_folders_is_refused(photo_folder):
    flat = photo_folder / "n01440764"
    (flat / "samples").mkdir()
    (flat / "n01440764_0.JPEG").rename(flat / "samples" / "0.JPEG")
    with pytest.raises(UserError, match="7 images directly and 1 in class folders"):
        open_source(flat)


def numbered(photo_folder: Path, *numbers: str) -> Path:
    """The folder with its class folders renamed."""
    for old, new in zip(sorted(p for p in photo_folder.iterdir() if p.is_dir()), numbers, strict=True):
        old.rename(photo_folder / new)
    return photo_folder


def test_numbered_folders_are_labels_only_if_told_so(photo_folder):
    """Sorted by name, as ImageFolder does, folder 10 would be class 0 and folder 9 class 2: ImageNet-V2's known trap."""
    folder = numbered(photo_folder, "9", "10", "2")
    source = open_source(folder, class_indices=True)
    assert {(n.partition("/")[0], label) for n, label in zip(source.names, source.labels.tolist(), strict=True)} == {
        ("9", 9), ("10", 10), ("2", 2)
    }  # fmt: skip
    assert source.classes == tuple(map(str, range(11)))
    assert open_source(folder).classes == ("10", "2", "9")


def test_numbered_folders_index_the_classes_of_the_training_file(photo_folder):
    folder, classes = numbered(photo_folder, "0", "1", "3"), [f"n0000000{k}" for k in range(4)]
    source = open_source(folder, classes=classes, class_indices=True)
    assert source.classes == tuple(classes) and set(source.labels.tolist()) == {0, 1, 3}
    with pytest.raises(UserError, match="label 3, but there are only 3 classes"):
        open_source(folder, classes=classes[:3], class_indices=True)
    with pytest.raises(UserError, match="or give --class-indices"):
        open_source(folder, classes=classes)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("0", "1", "cups"), "folder 'cups' is not a class number"),
        (("0", "1", "01"), "two folders have the same number"),
        (("0", "1", "9" * 20), "is not a class number"),
        (("0", "1", "²"), "is not a class number"),
    ],
)
def test_folders_that_are_no_labels_are_refused(photo_folder, names, message):
    with pytest.raises(UserError, match=message):
        open_source(numbered(photo_folder, *names), class_indices=True)


def test_one_name_in_two_forms_of_unicode_is_one_class(tmp_path):
    """macOS writes "cafe" with a combining accent; another system with an accented letter."""
    for name in ("caf\u00e9", "cafe\u0301"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "0.jpg").touch()
    source = open_source(tmp_path / "train")
    assert (source.classes, source.labels.tolist()) == (("caf\u00e9",), [0, 0])
    assert open_source(tmp_path / "train", classes=["cafe\u0301", "x"]).labels.tolist() == [0, 0]
    (tmp_path / "t.csv").write_text("path,label\n0.jpg,caf\u00e9\n1.jpg,cafe\u0301\n")
    assert open_source(tmp_path / "t.csv").classes == ("caf\u00e9",)
