"""CSV and parquet tables as sources of `fastft convert`."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from beton_tools.base.errors import UserError
from beton_tools.sources import open_source
from beton_tools.sources.parquet import open_tables
from beton_tools.sources.path_table import splits_of
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions


@pytest.fixture
def images(tmp_path: Path, photographs) -> Path:
    (tmp_path / "pictures").mkdir()
    for name in ("coffee", "rocket"):
        Image.fromarray(photographs[name][:40, :50]).save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path


ROWS = "pictures/coffee.png{d}cup\npictures/rocket.png{d}ship\n"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("head", ["image_path{d}label", "File_Name{d}Target", "\ufefffilepath{d}class"])
def test_a_csv_is_converted_with_its_usual_column_names(images, head, delimiter):
    table = images / "t.csv"
    table.write_text((head + "\n" + ROWS).format(d=delimiter), encoding="utf-8")
    manifest = convert_folder(table, images / "t.beton", WriteOptions(workers=0))
    assert manifest.classes == ["cup", "ship"]
    assert list(manifest.names) == ["pictures/coffee.png", "pictures/rocket.png"]


def test_a_parquet_table_may_list_paths_or_hold_images_with_named_labels(images):
    rows = [{"path": "pictures/coffee.png", "label": "cup"}, {"path": "pictures/rocket.png", "label": "ship"}]
    pq.write_table(pa.Table.from_pylist(rows), images / "paths.parquet")
    held = [{"image": (images / row["path"]).read_bytes(), "label": row["label"]} for row in rows]
    pq.write_table(pa.Table.from_pylist(held), images / "held.parquet")
    listed, embedded = (open_source(images / f"{name}.parquet") for name in ("paths", "held"))
    assert listed.classes == embedded.classes == ("cup", "ship")
    for i in range(2):
        assert listed.locate(i).read() == embedded.locate(i).read()


@pytest.fixture(params=["paths", "images"])
def cells(request: pytest.FixtureRequest, images: Path) -> list[str] | list[bytes]:
    """The image column of a parquet file."""
    names = ["pictures/coffee.png", "pictures/rocket.png"]
    return names if request.param == "paths" else [(images / name).read_bytes() for name in names]


@pytest.mark.parametrize("labels", [["cup", " "], [1.0, float("nan")]], ids=["space", "NaN"])
def test_a_row_of_a_parquet_file_without_a_label_is_named(images, cells, labels):
    if isinstance(cells[0], bytes) and labels[0] == 1.0:
        pytest.skip("labels beside images are integers or text")
    pq.write_table(pa.table({"image": cells, "label": labels}), images / "t.parquet")
    with pytest.raises(UserError, match=r"row 3: no label\. Fill the cell, or remove the row"):
        open_source(images / "t.parquet")


def test_space_around_a_label_is_no_part_of_it(images, cells):
    pq.write_table(pa.table({"image": cells, "label": ["cup ", "cup"]}), images / "t.parquet")
    assert open_source(images / "t.parquet").classes == ("cup",)


def test_categories_of_pandas_are_names(images, cells):
    labels = pa.array(["cup", "ship"]).dictionary_encode()
    pq.write_table(pa.table({"image": cells, "id": [7, 8], "label": labels}), images / "t.parquet")
    found = open_source(images / "t.parquet")
    assert found.classes == ("cup", "ship") and found.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("columns", "label"),
    [
        (["id", "Label"], "Label"),
        (["coarse_label", "fine_label"], "fine_label"),
        (["width", "class_id", "height"], "class_id"),
        (["id", "split", "kind"], "kind"),
        (["id", "group"], "none of image, id, group is the label column. Name the label column 'label'"),
        (["kind", "weight"], "kind or weight could be the label column. Name the label column 'label'"),
    ],
)
def test_no_other_column_of_integers_is_taken_for_the_label(images, columns, label):
    """Class numbers beside embedded images: the label's rows hold 0 and 1."""
    cells = {name: [0, 1] if name == label else [5, 6] for name in columns}
    pq.write_table(pa.table({"image": [b"x", b"y"], **cells}), images / "t.parquet")
    if label in columns:
        assert open_source(images / "t.parquet").labels.tolist() == [0, 1]
        return
    with pytest.raises(UserError, match=label):
        open_source(images / "t.parquet")


@pytest.mark.parametrize("labels", [[0.0, 1.0], [True, False], pa.nulls(2)], ids=["float", "bool", "null"])
def test_no_other_column_takes_the_place_of_a_label_column_of_another_type(images, labels):
    """pandas stores class numbers as floats where one is missing."""
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": labels, "year": [2001, 2002]}), images / "t.parquet")
    with pytest.raises(UserError, match=r"label has the type .*\. Labels must be integers or names"):
        open_source(images / "t.parquet")


def test_a_column_of_another_type_does_not_hide_the_labels(images):
    table = pa.table({"image": [b"x", b"y"], "category": [["a"], ["b"]], "target": pa.nulls(2), "labels": [1, 0]})
    pq.write_table(table, images / "t.parquet")
    assert open_source(images / "t.parquet").labels.tolist() == [1, 0]


def test_a_path_with_dots_after_a_link_is_the_file_that_the_system_opens(images, tmp_path_factory):
    far = tmp_path_factory.mktemp("far")
    (far / "deep").mkdir()
    for folder, name in ((far, "far"), (images, "near")):
        (folder / "x.png").write_bytes(name.encode())
    (images / "link").symlink_to(far / "deep")
    (images / "t.csv").write_text("path,label\nlink/../x.png,a\npictures/../x.png,b\n")
    source = open_source(images / "t.csv")
    assert [source.locate(i).read() for i in range(2)] == [b"far", b"near"]


def test_optional_columns_are_read(images):
    table = images / "t.csv"
    table.write_text("path,label,split,group\na.png,x,Validation,p1\nb.png,y,training,\nc.png,y,test,p2\n")
    source, tables = open_tables(images, [table])
    assert splits_of(tables) == ["val", "train", "test"] and list(source.groups) == ["p1", "", "p2"]
    table.write_text("path,label,is_valid\na.png,x,True\nb.png,y,0\n")
    source, tables = open_tables(images, [table])
    assert splits_of(tables) == ["val", "train"] and source.groups is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the table is empty"),
        ("path,label\n", "the table has no rows"),
        ("path,label\na.png\n", "row 2: 1 cells, but the first line names 2 columns"),
        ("path,label\n,x\n", "row 2: no path. Fill the cell"),
        ("path,label\n\n\na.png,x\n\n,x\n", "row 6: no path. Fill the cell"),
        ("path,label,Label\na.png,x,y\n", "2 columns are named Label. Rename all but one"),
        ("path,label,path\na.png,x,b.png\n", "2 columns are named path. Rename all but one"),
        ("where,label\na.png,x\n", "no image path column among where, label"),
        ("path,label,is_valid\na.png,x,perhaps\n", "is_valid is 'perhaps'. Write true or false"),
        (
            "path,label,split\na.png,x,train\nb.png,y,TEST\n",
            "lists images of test, train. Write a table for each of them",
        ),
        ('path,label\n"a.png,x\n', "cannot be read as CSV"),
        ("path,label\nhttps://x.org/a.png,x\n", "https://x.org/a.png is a URL. Download the images"),
    ],
)
def test_mistakes_name_the_table_and_the_row(tmp_path, text, message):
    table = tmp_path / "t.csv"
    table.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        open_source(table)
    assert "\n" not in str(error.value) and str(table) in str(error.value)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("\npath;label\na.png;x\n", ("x",)),
        ("path,label\na.png,line\u2028separator\n", ("line\u2028separator",)),
        ('path,label\na.png,"two\nlines"\n', ("two\nlines",)),
        ("path,label\r\na.png,x\r\n", ("x",)),
    ],
    ids=["first line is blank", "line separator in a cell", "quoted line break", "Windows"],
)
def test_a_cell_may_hold_any_text(tmp_path, text, labels):
    (tmp_path / "t.csv").write_bytes(text.encode())
    assert open_tables(tmp_path, [tmp_path / "t.csv"])[0].classes == labels


def test_excels_unicode_text_is_read(tmp_path):
    (tmp_path / "t.csv").write_bytes("path\tlabel\r\na.png\tcafé\r\n".encode("utf-16"))
    assert open_tables(tmp_path, [tmp_path / "t.csv"])[0].classes == ("café",)


def test_a_label_in_another_encoding_is_named_and_a_path_may_be_any_bytes(tmp_path):
    (tmp_path / "t.csv").write_bytes("path,label\na.png,x\nb.png,café\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"t\.csv, row 3: the label is not UTF-8 text. Save the table as UTF-8"):
        open_tables(tmp_path, [tmp_path / "t.csv"])
    (tmp_path / "t.csv").write_bytes("path,label\ncafé.png,x\n".encode("latin-1"))
    assert list(open_tables(tmp_path, [tmp_path / "t.csv"])[0].names) == ["caf\udce9.png"]


def test_only_columns_that_are_used_must_have_different_names(images):
    (images / "t.csv").write_text("path,label,note,note,file,file\npictures/coffee.png,cup,a,b,c,d\n")
    assert open_source(images / "t.csv").classes == ("cup",)
    columns = [pa.array(["pictures/coffee.png"]), pa.array(["cup"]), pa.array(["ship"])]
    pq.write_table(pa.Table.from_arrays(columns, ["path", "label", "Label"]), images / "t.parquet")
    with pytest.raises(UserError, match=r"2 columns are named Label\. Rename all but one"):
        open_source(images / "t.parquet")


def test_a_column_that_is_almost_one_of_0_and_1_is_named(images):
    (images / "t.csv").write_text("path,cat,dog\npictures/coffee.png,0.5,1\npictures/rocket.png,1,0\n")
    with pytest.raises(UserError, match=r"cat is not one class's column with only 0 and 1 \(row 2 is '0.5'\)"):
        open_source(images / "t.csv")


@pytest.mark.parametrize("labels", [("2", "10", "x"), ("2.0", "9.5", "10.0", "x")])
def test_classes_that_are_numbers_are_sorted_by_value(tmp_path, labels):
    """pandas writes whole numbers with decimals if one of them was missing once."""
    rows = "".join(f"{label}.png,{label}\n" for label in sorted(labels))
    (tmp_path / "t.csv").write_text(f"path,label\n{rows}")
    assert open_tables(tmp_path, [tmp_path / "t.csv"])[0].classes == labels
