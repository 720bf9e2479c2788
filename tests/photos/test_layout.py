"""Which folders and tables are training, validation or class folders, and what is said of the rest."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from beton_tools.base.errors import UserError
from fastft.photos.layout import open_sets, open_val
from fastft.photos.split import check_photos, split_photos
from tests.beton_tools.conftest import shard_of
from tests.photos.conftest import CLASSES, PER_CLASS
from tests.photos.test_prepare import listed, rows_of, write_csv


@pytest.fixture
def split(album: Path, tmp_path: Path) -> Path:
    """`train/` and `val/` of all classes."""
    for side in ("train", "val"):
        shutil.copytree(album, tmp_path / "set" / side)
    return tmp_path / "set"


def warnings_of(path: Path) -> list[str]:
    return split_photos(check_photos(*open_sets(str(path)))).warnings


@pytest.mark.parametrize("other", ["__MACOSX", "unlabelled", "valid", "dev"])
def test_a_folder_beside_train_and_val_makes_no_classes_of_them(split, other):
    shutil.copytree(split / "val" / "coffee", split / other / "more")
    train, val = open_sets(str(split))
    assert train.source.classes == CLASSES and val is not None and val.source.classes == CLASSES
    assert any(f"not used, because training uses train: {other}" in line for line in warnings_of(split))


def test_train_and_test_are_no_classes_whatever_lies_beside_them(album, tmp_path):
    for side in ("train", "test", "unlabelled"):
        shutil.copytree(album, tmp_path / "set" / side)
    (tmp_path / "set" / "__MACOSX").mkdir()
    train, val = open_sets(str(tmp_path / "set"))
    assert train.source.classes == CLASSES and val is None
    (line,) = (line for line in warnings_of(tmp_path / "set") if "not used" in line)
    assert line.endswith(": unlabelled")


def test_images_in_a_folder_test_are_used_for_nothing(split):
    before = [list(side.source.names) for side in open_sets(str(split)) if side is not None]
    shutil.copytree(split / "val", split / "test")
    assert [list(side.source.names) for side in open_sets(str(split)) if side is not None] == before
    shutil.rmtree(split / "val")
    train, val = open_sets(str(split))
    assert list(train.source.names) == before[0] and val is None


def test_a_table_whose_classes_are_numbers_gives_the_same_sets_as_the_folder(album, tmp_path):
    for k in range(12):  # as text: 0, 1, 10, 11, 2, ...
        shutil.copytree(album / CLASSES[k % 3], tmp_path / "set" / str(k))
        for i, image in enumerate(sorted((tmp_path / "set" / str(k)).glob("*.jpg"))):
            image.write_bytes(image.read_bytes() + bytes([k, i]))  # no image is in two classes
    rows = rows_of(tmp_path / "set")
    sides = []
    for path in (tmp_path / "set", write_csv(tmp_path / "set" / "t.csv", rows)):
        plan = split_photos(check_photos(*open_sets(str(path))))
        assert plan.train.source.classes == tuple(map(str, range(12)))
        sources = (plan.train.source, plan.val.source)
        sides.append([(list(source.names), source.labels.tolist()) for source in sources])
    assert sides[0] == sides[1]


def test_groups_that_leave_nothing_to_hold_out_are_the_reason_given(album):
    rows = [r | {"group": r["label"]} for r in listed(album)]
    (line,) = warnings_of(write_csv(album.parent / "groups.csv", rows))
    assert "groups and identical images must stay on one side" in line and "--data.val" in line


def test_dev_is_a_validation_folder_as_it_is_in_tables(split):
    (split / "val").rename(split / "dev")
    assert open_sets(str(split))[1] is not None


def test_a_class_may_be_called_train(album, tmp_path):
    for name in ("train", "bus"):
        shutil.copytree(album / "coffee", tmp_path / "vehicles" / name / "seen")
    train, val = open_sets(str(tmp_path / "vehicles"))
    assert train.source.classes == ("bus", "train") and val is None


def test_splits_without_class_folders_are_refused(album, tmp_path):
    for side in ("train", "val"):
        shutil.copytree(album / "coffee", tmp_path / "set" / side)
    with pytest.raises(
        UserError, match=r"train: the images have no labels\. Put them into one folder per class, or give a table"
    ):
        open_sets(str(tmp_path / "set"))


def test_images_without_labels_are_refused_with_what_gives_them(album, tmp_path):
    flat = Path(shutil.copytree(album / "coffee", tmp_path / "flat"))
    with pytest.raises(
        UserError, match=r"images have no labels\. Put them into one folder per class, or give a table with"
    ):
        open_sets(str(flat))
    write_csv(flat / "labels.csv", [{"file": "00.jpg", "label": "a"}])
    with pytest.raises(UserError, match=r"or give the table: .*labels\.csv"):
        open_sets(str(flat))


def test_files_that_are_not_read_and_images_without_a_class_are_named(album, tmp_path):
    folder = Path(shutil.copytree(album, tmp_path / "photos"))
    for i in range(3):
        (folder / "coffee" / f"{i}.cr2").write_bytes(b"x")
    shutil.copy(folder / "coffee" / "00.jpg", folder / "loose.jpg")
    text = "\n".join(warnings_of(folder))
    assert "3 files are left out, because fastft cannot read the format: 3 .cr2" in text
    assert f"{folder}: 1 image is in no class folder and left out" in text


@pytest.mark.parametrize(("column", "cell"), [("split", "val"), ("is_valid", "1")])
def test_a_table_of_validation_images_may_say_so_in_its_split_column(album, column, cell):
    rows = [r | {"image_path": f"photos/{r['image_path']}", column: cell} for r in rows_of(album)]
    table = write_csv(album.parent / f"{column}.csv", rows)
    assert len(open_val(str(table))) == len(CLASSES) * PER_CLASS
    with pytest.raises(UserError, match="no row has the split 'train'"):
        open_sets(str(table))


def test_absolute_paths_below_a_linked_folder_are_found(album, tmp_path):
    (tmp_path / "deep" / "real").mkdir(parents=True)
    shutil.copytree(album, tmp_path / "deep" / "real" / "photos")
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "real")
    rows = [r | {"image_path": str(tmp_path / "link" / "photos" / r["image_path"])} for r in rows_of(album)]
    table = write_csv(tmp_path / "link" / "t.csv", rows)
    plan = split_photos(check_photos(*open_sets(str(table))))
    assert plan.missing == [] and len(plan.train) + len(plan.val or ()) == len(CLASSES) * PER_CLASS


def test_a_table_may_lie_beside_the_class_folders_that_it_lists(album, tmp_path):
    photos = Path(shutil.copytree(album, tmp_path / "photos"))
    write_csv(photos / "list.csv", rows_of(photos))
    parquet.write_table(pa.Table.from_pylist(rows_of(photos)), photos / "list.parquet")
    sets = [open_sets(str(path))[0].source for path in (photos, photos / "list.csv", photos / "list.parquet")]
    assert [list(source.names) for source in sets] == [list(sets[0].names)] * 3
    assert [source.kind for source in sets] == ["folder", "table", "table"]


def test_archives_keep_the_order_of_their_list_of_classes(album, tmp_path):
    """Only folders have no order of their own."""
    names = sorted(CLASSES, reverse=True)
    (tmp_path / "classes.txt").write_text("\n".join(names))
    pairs = [(image.read_bytes(), names.index(image.parent.name)) for image in sorted(album.rglob("*.jpg"))]
    (tmp_path / "photos-000.tar").write_bytes(shard_of(pairs))
    assert open_sets(str(tmp_path))[0].source.classes == tuple(names)


def test_images_in_archives_beside_class_folders_are_refused(album, tmp_path):
    photos = Path(shutil.copytree(album, tmp_path / "photos"))
    parquet.write_table(pa.Table.from_pylist(rows_of(photos)), photos / "a-table.parquet")
    rows = [{"image": {"bytes": image.read_bytes()}, "label": 0} for image in photos.rglob("*.jpg")]
    parquet.write_table(pa.Table.from_pylist(rows), photos / "images.parquet")
    with pytest.raises(UserError, match=r"class folders and archives \(images\.parquet\)"):
        open_sets(str(photos))
