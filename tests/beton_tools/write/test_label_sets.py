"""Several labels per image: every kind of table, the file, stock FFCV's loader and writer, damage."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from beton_tools.base.errors import UserError
from beton_tools.inspect.extract import extract
from beton_tools.inspect.verify import verify
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.format import FIELD_DTYPE, HEADER_DTYPE, Beton
from beton_tools.read.manifest import Manifest, manifest_path
from beton_tools.sources import open_source, path_table
from beton_tools.sources.base import subset
from beton_tools.write.pagefile import PageFile
from beton_tools.write.writer import WriteOptions, write_beton
from fastft.cli import main
from tests.refusals import refuses

NAMES = ("cat", "dog", "eel")
SETS = [("dog", "cat"), (), ("eel",), ("cat",), ("dog", "eel", "cat"), ("dog",), ("eel", "cat"), ("dog",)]
WANT = np.array([[name in labels for name in NAMES] for labels in SETS], np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, np.ndarray]) -> Path:
    root = tmp_path_factory.mktemp("sets")
    for k in range(len(SETS)):
        Image.fromarray(photographs["coffee"][10 * k : 10 * k + 40, :50]).save(root / f"{k}.jpg")
    return root


def tables(folder: Path) -> dict[str, Path]:
    files = [f"{k}.jpg" for k in range(len(SETS))]
    images = [(folder / name).read_bytes() for name in files]
    flags = {name: [int(name in labels) for labels in SETS] for name in ("eel", "dog", "cat")}
    joined, lists = [";".join(labels) for labels in SETS], [list(labels) for labels in SETS]
    in_csv = {"joined": {"labels": joined}, "flags": flags | {"width": [50] * len(SETS)}}
    kinds = {"lists": {"labels": lists}, "joined": {"tags": [0] * len(SETS), "label": joined}, "flags": flags}
    found = {}
    for name, columns in in_csv.items():
        found[f"csv {name}"] = folder / f"{name}.csv"
        lines = [("image", *columns), *zip(files, *columns.values(), strict=True)]
        found[f"csv {name}"].write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    for name, columns in kinds.items():
        for stored, cells in (("paths", files), ("images", images)):
            found[f"{stored} {name}"] = folder / f"{stored}-{name}.parquet"
            pq.write_table(pa.table({"image": cells, **columns}), found[f"{stored} {name}"])
    return found


def test_every_kind_of_table_gives_the_same_label_sets(folder: Path) -> None:
    for kind, path in tables(folder).items():
        source = open_source(path)
        assert source.classes == NAMES, kind
        np.testing.assert_array_equal(source.labels, WANT, kind)
    known = open_source(tables(folder)["csv joined"], classes=("eel", "cow", "dog", "cat"))
    np.testing.assert_array_equal(known.labels, np.insert(WANT[:, ::-1], 1, 0, axis=1))
    np.testing.assert_array_equal(subset(known, np.array([4, 1]), NAMES).labels, WANT[[4, 1]])


def test_names_of_listed_class_numbers_are_those_of_the_metadata(folder: Path) -> None:
    numbers = [[NAMES.index(name) for name in labels] for labels in SETS]
    table = pa.table({"image": [b"x"] * len(SETS), "labels": numbers})
    info = b'{"info": {"features": {"labels": {"feature": {"names": ["cat", "dog", "eel"]}, "_type": "Sequence"}}}}'
    pq.write_table(table.replace_schema_metadata({"huggingface": info}), folder / "numbers.parquet")
    source = open_source(folder / "numbers.parquet")
    assert source.classes == NAMES
    np.testing.assert_array_equal(source.labels, WANT)


def test_tables_of_single_labels_stay_so(folder: Path) -> None:
    (folder / "single.csv").write_text("image,label,dog,cat\n0.jpg,a,1,0\n1.jpg,b,0,1\n")
    assert open_source(folder / "single.csv").labels.tolist() == [0, 1]
    table = pa.table({"image": [b"x", b"y"], "kind": [0, 1], "is_grey": [True, False]})
    pq.write_table(table, folder / "single.parquet")
    assert open_source(folder / "single.parquet").labels.tolist() == [0, 1]
    (folder / "gap.csv").write_text("image,dog,cat\n0.jpg,1,\n1.jpg,0,1\n")
    with pytest.raises(UserError, match=r"row 2: no cat\. Fill the cell"):
        open_source(folder / "gap.csv")


@pytest.mark.parametrize("unknown", ["-1", "NaN", "2"])
def test_a_column_with_a_cell_that_is_neither_0_nor_1_is_not_left_out(folder: Path, unknown: str) -> None:
    (folder / "unknown.csv").write_text(f"image,dog,cat,eel\n0.jpg,1,0,1\n1.jpg,0,1,{unknown}\n2.jpg,1,0,0\n")
    with pytest.raises(UserError, match=f"row 3: eel is '{unknown}', neither 0 nor 1"):
        open_source(folder / "unknown.csv")
    columns = {"dog": [1, 0, 1], "cat": [0, 1, 0], "eel": [1.0, float(unknown), 0.0]}
    pq.write_table(pa.table({"image": [b"x", b"y", b"z"], **columns}), folder / "unknown.parquet")
    with pytest.raises(UserError, match=r"row 3: (eel is .*, neither 0 nor 1|no eel. Fill)"):
        open_source(folder / "unknown.parquet")


@pytest.mark.parametrize("suffix", ["csv", "paths", "images"])
def test_a_semicolon_of_a_class_name_is_one_where_asked_and_told_where_not(folder: Path, suffix: str) -> None:
    path, cells = folder / f"names-{suffix}.{'csv' if suffix == 'csv' else 'parquet'}", ["pets;cat", "pets;dog", "eel"]
    files = ["0.jpg", "1.jpg", "2.jpg"]
    images = [(folder / f).read_bytes() for f in files] if suffix == "images" else files
    if suffix == "csv":
        path.write_text("image,label\n" + "".join(f"{f},{cell}\n" for f, cell in zip(files, cells, strict=True)))
    else:
        pq.write_table(pa.table({"image": images, "label": cells}), path)
    several, single = open_source(path), open_source(path, single=True)
    assert several.classes == ("cat", "dog", "eel", "pets")
    assert (
        several.reading == "2 of 3 label cells have a semicolon, such as 'pets;cat': read as several labels per image"
    )
    assert (single.classes, single.labels.tolist()) == (("eel", "pets;cat", "pets;dog"), [1, 2, 0])
    known = open_source(path, classes=("pets;dog", "pets;cat", "eel"))
    assert (known.labels.tolist(), known.reading, single.reading) == ([1, 0, 2], "", "")


@pytest.mark.parametrize("labels", [[["a"], ["b", None]], [["a"], ["b", " "]], [[1], [0, -1]], [[1], [None]]])
def test_a_list_with_an_empty_or_negative_label_is_not_shortened(folder: Path, labels: list) -> None:
    pq.write_table(pa.table({"image": [b"x", b"y"], "labels": labels}), folder / "null.parquet")
    with refuses("null.parquet, row 3: labels has the label '(-1)?'. Correct it"):
        open_source(folder / "null.parquet")


def test_class_columns_that_differ_in_case_are_two_classes(folder: Path) -> None:
    (folder / "case.csv").write_text("path,a,A\n1.jpg,1,0\n2.jpg,0,1\n")
    source = open_source(folder / "case.csv")
    assert (source.classes, source.labels.tolist()) == (("A", "a"), [[0, 1], [1, 0]])


@pytest.mark.parametrize("head", ["a,a,b", "a,a ,b", "caf\u00e9,cafe\u0301,b"])
def test_two_columns_of_one_class_are_refused(folder: Path, head: str) -> None:
    (folder / "twice.csv").write_text(f"path,{head}\n1.jpg,1,0,0\n2.jpg,0,1,0\n")
    cells = [pa.array(["1.jpg", "2.jpg"]), *(pa.array(flags) for flags in ([1, 0], [0, 1], [0, 0]))]
    pq.write_table(pa.Table.from_arrays(cells, ["path", *head.split(",")]), folder / "twice.parquet")
    for name in ("twice.csv", "twice.parquet"):
        with refuses(f"{name}: 2 columns are named (a|caf\u00e9). Rename"):
            open_source(folder / name)


def test_a_class_without_images_stays_and_a_table_without_labels_is_refused(folder: Path) -> None:
    (folder / "never.csv").write_text("path,cat,dog\n1.jpg,1,0\n2.jpg,0,0\n")
    source = open_source(folder / "never.csv")
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [[1, 0], [0, 0]])
    (folder / "none.csv").write_text("path,cat,dog\n1.jpg,0,0\n2.jpg,0,0\n")
    with refuses("none.csv: no image has a label"):
        open_source(folder / "none.csv")


@pytest.mark.parametrize(
    ("head", "told"),
    [
        ("path,file,width,group,cat,dog",
         "image from 'path', group from 'group', 2 classes from 'cat', 'dog', not used: 'file', 'width'"),
        ("path,class,cat,dog,split", "image from 'path', label from 'class', split from 'split', not used: 'cat', 'dog'"),
    ],
)  # fmt: skip
def test_how_each_column_was_read_is_told(folder: Path, capsys, head: str, told: str) -> None:
    rows = "".join(
        f"{k}.jpg{f',{k}' * (head.count(',') - ('split' in head))}{',val' * ('split' in head)}\n" for k in (0, 1)
    )
    (folder / "told.csv").write_text(f"{head}\n{rows}")
    assert (
        main(["convert", "folder", f"--data={folder / 'told.csv'}", f"--out={folder / head}.beton", "--workers=0"]) == 0
    )
    assert f"columns: {told}\n" in capsys.readouterr().out


def test_tables_of_too_many_labels_are_refused(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(path_table, "MAX_SETS", 23)
    with pytest.raises(UserError, match="8 x 3 labels, but the limit is 23"):
        open_source(tables(folder)["csv joined"])


@pytest.fixture(scope="module")
def written(folder: Path) -> Path:
    source = open_source(tables(folder)["csv joined"])
    write_beton(folder / "sets.beton", source, WriteOptions(workers=0, page_size=1 << 16, shuffle_seed=3))
    return folder / "sets.beton"


def order_of(betons: BetonSet) -> np.ndarray:
    return np.array([int(Path(name).stem) for name in betons.read_names() or ()])


def test_the_file_holds_them(folder: Path, written: Path, tmp_path: Path) -> None:
    betons = BetonSet.open(written)
    np.testing.assert_array_equal(betons.labels, WANT[order_of(betons)])
    assert (betons.class_names, betons.class_counts) == (list(NAMES), WANT.sum(0).tolist())
    taken = betons.take(np.array([1, 5]))
    np.testing.assert_array_equal(taken.labels, betons.labels[[1, 5]])
    options = WriteOptions(workers=0, page_size=1 << 16, shuffle_seed=4)  # a copy of the file would be refused as one
    write_beton(tmp_path / "second.beton", open_source(tables(folder)["csv joined"]), options)
    manifest_path(tmp_path / "second.beton").unlink()
    with pytest.raises(UserError, match=r"second.beton has no manifest that names its classes"):
        BetonSet.open([written, tmp_path / "second.beton"])
    both = BetonSet.open([written, tmp_path / "second.beton"], classes_by_position=True)
    assert len(both.labels) == 2 * len(SETS) and both.class_counts == (2 * WANT.sum(0)).tolist()
    assert verify(written).ok
    beton, manifest = Beton.open(written), Manifest.of_beton(written)
    folders = {path.parent.name for path in extract(beton, manifest, range(len(SETS)), tmp_path / "out")}
    assert folders == {";".join(sorted(labels)) or "none" for labels in SETS}


def test_stock_ffcv_reads_them(written: Path) -> None:
    from ffcv.fields.decoders import NDArrayDecoder
    from ffcv.loader import Loader, OrderOption

    pipelines = {"image": None, "labels": [NDArrayDecoder()]}
    loader = Loader(
        str(written),
        3,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        pipelines=pipelines,
        os_cache=False,
        drop_last=False,
    )
    read = np.concatenate([labels.copy() for (labels,) in loader])
    np.testing.assert_array_equal(read, BetonSet.open(written).labels)


def test_files_of_ffcvs_writer_are_read(folder: Path, tmp_path: Path) -> None:
    from ffcv.fields import NDArrayField, RGBImageField
    from ffcv.writer import DatasetWriter

    class Images:
        def __len__(self) -> int:
            return len(SETS)

        def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
            return np.array(Image.open(folder / f"{i}.jpg")), WANT[i] * np.float32(0.75)

    path, fields = tmp_path / "x.beton", {"image": RGBImageField(), "tags": NDArrayField(np.dtype("f4"), (3,))}
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(Images(), chunksize=3)
    betons = BetonSet.open(path)
    np.testing.assert_array_equal(betons.labels, WANT * np.float32(0.75))
    assert betons.class_counts == WANT.sum(0).tolist()


def test_an_interrupted_conversion_continues_to_the_same_bytes(written: Path, folder: Path, monkeypatch) -> None:
    options = WriteOptions(workers=0, page_size=1 << 16, shuffle_seed=3)
    source, again = open_source(tables(folder)["csv joined"]), folder / "again.beton"
    with monkeypatch.context() as patched:
        patched.setattr(PageFile, "publish", lambda self: 1 / 0)  # after the last byte was written
        with pytest.raises(ZeroDivisionError):
            write_beton(again, source, options)
    write_beton(again, source, options)
    assert again.read_bytes() == written.read_bytes()


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [("ptr", 1 << 40, "outside the file"), ("size", 30_000, "overlap"), ("set", 7, "other than 0 to 1")],
)
def test_damaged_label_sets_are_refused(written: Path, tmp_path: Path, field: str, value: int, reason: str) -> None:
    beton, data = Beton.open(written), bytearray(written.read_bytes())
    pointer = int(beton.metadata["f1"][0])
    if field == "set":
        data[pointer] = value
    elif field == "size":  # of all arrays, of which each lies in the file
        at = HEADER_DTYPE.itemsize + FIELD_DTYPE.itemsize + FIELD_DTYPE.fields["arguments"][1]
        data[at : at + 8] = value.to_bytes(8, "little")
    else:
        at = data.index(pointer.to_bytes(8, "little"))
        data[at : at + 8] = value.to_bytes(8, "little")
    (tmp_path / "damaged.beton").write_bytes(data)
    with pytest.raises(UserError, match=reason):
        Beton.open(tmp_path / "damaged.beton")


def test_a_vector_of_other_values_under_another_name_is_no_label(written: Path, tmp_path: Path) -> None:
    data = bytearray(written.read_bytes())
    data[int(Beton.open(written).metadata["f1"][0])] = 7
    (tmp_path / "x.beton").write_bytes(data.replace(b"labels", b"points", 1))
    with pytest.raises(UserError, match=r"no label field \(int or array\)"):
        _ = Beton.open(tmp_path / "x.beton").labels


def test_images_per_class_are_limited_by_the_rarest_label(folder: Path, tmp_path: Path) -> None:
    options = WriteOptions(workers=0, page_size=1 << 16, subset_per_class=1)
    write_beton(tmp_path / "few.beton", open_source(tables(folder)["csv flags"]), options)
    betons = BetonSet.open(tmp_path / "few.beton")
    assert len(betons) == 1 + len(NAMES)  # the image without labels is a class of its own
    np.testing.assert_array_equal(betons.labels, WANT[order_of(betons)])


def test_a_table_without_a_class_column_that_others_have_is_refused(folder: Path, tmp_path: Path) -> None:
    for name, classes in (("train-0", ("cat", "dog")), ("train-1", ("cat", "eel"))):
        columns = {known: [1, 0] for known in classes}
        pq.write_table(pa.table({"image": [b"x", b"y"], **columns}), tmp_path / f"{name}.parquet")
    with refuses("train-0.parquet: no column of 0 and 1 for 'eel'. Add the column"):
        open_source(tmp_path)
    with refuses("csv: no column of 0 and 1 for 'cow', 'yak'. Add the column"):
        open_source(tables(folder)["csv flags"], classes=("eel", "cow", "dog", "cat", "yak"))
