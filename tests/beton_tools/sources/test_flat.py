"""Labels of ImageNet's flat validation set come from the devkit, Kaggle's table or a text file."""

import gzip
import random
import re
from pathlib import Path

import pytest

from beton_tools import UserError
from beton_tools.sources import open_source
from tests.beton_tools.conftest import devkit_files, tar_of
from tests.refusals import refuses

ValImages = dict[str, tuple[str, bytes]]


def write_flat(folder: Path, images: ValImages) -> None:
    folder.mkdir()
    for name, (_, data) in images.items():
        (folder / name).write_bytes(data)


def check_source(source, images: ValImages) -> None:
    assert source.classes == tuple(sorted({wnid for wnid, _ in images.values()}))
    assert list(source.names) == list(images)
    assert [source.classes[label] for label in source.labels] == [wnid for wnid, _ in images.values()]
    assert [source.locate(i).read() for i in range(len(images))] == [data for _, data in images.values()]


def test_kaggles_table(tmp_path, val_images):
    write_flat(tmp_path / "val", val_images)
    rows = [f"{Path(name).stem},{wnid} 1 2 30 40 {wnid} 5 6 70 80" for name, (wnid, _) in val_images.items()]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]))
    check_source(open_source(tmp_path, "val"), val_images)


@pytest.mark.parametrize("form", ["wnid", "number"])
def test_a_text_file_of_names_and_classes(tmp_path, val_images, form):
    write_flat(tmp_path / "val", val_images)
    classes = sorted({wnid for wnid, _ in val_images.values()})
    value = (lambda wnid: str(classes.index(wnid))) if form == "number" else str
    lines = [f"{name} {value(wnid)}" for name, (wnid, _) in val_images.items()]
    (tmp_path / "val.txt").write_text("\n".join(lines) + "\n")
    check_source(open_source(tmp_path, "val", classes if form == "number" else None), val_images)


@pytest.mark.parametrize("lines", ["a.jpg 0\na.png 1\n", "a.jpg 0\na.jpg 1\n", "a 1\nx/a.jpg 0\n"])
def test_a_name_with_two_classes_is_refused(tmp_path, lines):
    write_flat(tmp_path / "val", {"a.jpg": ("", b"x"), "b.jpg": ("", b"x")})
    (tmp_path / "val.txt").write_text(f"{lines}b.jpg 1\n")
    with pytest.raises(UserError, match=r"val\.txt gives a the classes . and .\. Names are compared without suffix"):
        open_source(tmp_path, "val")
    (tmp_path / "val.txt").write_text("a.jpg 0\nb.jpg 1\nelsewhere.jpg 0\nelsewhere.png 1\na.jpg 0\n")
    assert open_source(tmp_path, "val").labels.tolist() == [0, 1]


def test_numbers_are_names_where_the_given_classes_are_numbers(tmp_path):
    """Folders 0 to 11 are sorted as text: position 2 is class 10."""
    write_flat(tmp_path / "val", {f"{k}.jpg": ("", b"x") for k in range(12)})
    (tmp_path / "val.txt").write_text("".join(f"{k}.jpg {k}\n" for k in range(12)))
    source = open_source(tmp_path, "val", sorted(map(str, range(12))))
    assert [source.classes[label] for label in source.labels] == [Path(name).stem for name in source.names]


def test_unlabelled_images_are_refused_with_what_to_add(tmp_path, val_images):
    write_flat(tmp_path / "val", val_images)
    with pytest.raises(UserError, match="devkit"):
        open_source(tmp_path / "val")


def test_a_ground_truth_of_another_set_is_refused(tmp_path, val_images):
    write_flat(tmp_path / "val", val_images)
    for name, content in devkit_files(["n01440764"] * 4).items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="4 lines for 9 images"):
        open_source(tmp_path, "val")
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_text("7\n" * 9)
    with pytest.raises(UserError, match=r"contains a class that meta\.mat lacks"):
        open_source(tmp_path, "val")
    (tmp_path / "meta.mat").write_bytes(b"MATLAB? no")
    with pytest.raises(UserError, match=r"meta\.mat cannot be read"):
        open_source(tmp_path, "val")


LOGIN_PAGE = "<!DOCTYPE html>\n<html><head><title>Sign in, please</title></head></html>\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ILSVRC2012_validation_ground_truth.txt", LOGIN_PAGE, "cannot be read .*. Download it again"),
        ("LOC_val_solution.csv", LOGIN_PAGE, "lacks 9 of 9 images, .*. Complete the file"),
        ("LOC_val_solution.csv", f'ImageId,"{"x" * 200_000}', "cannot be read .*. Download it again"),
        ("val.txt", LOGIN_PAGE, "lacks 9 of 9 images, .*. Complete the file"),
    ],
    ids=["devkit", "table", "broken table", "text"],
)
def test_a_damaged_list_of_labels_is_named(tmp_path, val_images, name, content, message):
    write_flat(tmp_path / "val", val_images)
    (tmp_path / name).write_text(content)
    with refuses(f"{re.escape(name)}:? {message}"):
        open_source(tmp_path, "val")


def test_a_damaged_archive_of_the_devkit_is_named(tmp_path, val_images):
    write_flat(tmp_path / "val", val_images)
    noise = random.Random(0).randbytes(100_000)  # incompressible: gzip stores it in blocks of at most 64 KiB
    packed = bytearray(gzip.compress(tar_of({"ILSVRC2012_validation_ground_truth.txt": noise})))
    packed[50_000:] = b"\xff" * len(packed[50_000:])
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(packed)
    with pytest.raises(UserError, match=r"ILSVRC2012_devkit_t12\.tar\.gz: cannot be read .*Download it again"):
        open_source(tmp_path, "val")
