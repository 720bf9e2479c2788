"""Images in archives: ILSVRC's tars, WebDataset shards, parquet files of Hugging Face's `datasets`."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beton_tools import UserError
from beton_tools.read.class_list import Classes
from beton_tools.sources import Source, open_source
from beton_tools.sources.base import KnownClasses
from tests.beton_tools.conftest import Pairs, labelled, tar_of, train_tar
from tests.refusals import refuses


def contents(source: Source) -> list[tuple[str, int, bytes]]:
    return [(Path(name).name, int(source.labels[i]), source.locate(i).read()) for i, name in enumerate(source.names)]


def test_a_folder_of_class_tars_reads_like_the_train_tar(tmp_path, photo_jpegs):
    (tmp_path / "train").mkdir()
    for wnid, images in photo_jpegs.items():
        files = {f"{wnid}_{i}.JPEG": data for i, data in enumerate(images)}
        (tmp_path / "train" / f"{wnid}.tar").write_bytes(tar_of(files))
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(train_tar(photo_jpegs))
    by_class = open_source(tmp_path, "train")
    assert contents(by_class) == contents(open_source(tmp_path / "ILSVRC2012_img_train.tar"))


def tar_with_links(images: list[bytes], links: dict[str, tuple[bytes, str]]) -> bytes:
    """A tar of the images 0.JPEG, 1.JPEG, ..., then members of the given types that refer to them."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for k, image in enumerate(images):
            info = tarfile.TarInfo(f"{k}.JPEG")
            info.size = len(image)
            tar.addfile(info, io.BytesIO(image))
        for name, (kind, target) in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    return data.getvalue()


def test_hard_links_are_images_and_other_members_without_data_are_counted(tmp_path, photo_jpegs):
    first, second = photo_jpegs["n01440764"][:2]
    links = {
        "a.JPEG": (tarfile.LNKTYPE, "1.JPEG"),
        "b.JPEG": (tarfile.LNKTYPE, "a.JPEG"),
        "c.JPEG": (tarfile.LNKTYPE, "missing.JPEG"),
        "d.JPEG": (tarfile.SYMTYPE, "0.JPEG"),
        "pipe": (tarfile.FIFOTYPE, ""),
        "folder": (tarfile.DIRTYPE, ""),
    }
    (tmp_path / "n01440764.tar").write_bytes(tar_with_links([first, second], links))
    source = open_source(tmp_path)
    expected = [("0.JPEG", first), ("1.JPEG", second), ("a.JPEG", second), ("b.JPEG", second)]
    assert [(name, data) for name, _, data in contents(source)] == expected
    assert source.left_out == {".jpeg link": 2, "special file": 1}


@pytest.mark.parametrize("damage", ["cut in data", "broken header", "compressed", "empty file"])
def test_a_damaged_tar_is_an_error_not_fewer_images(tmp_path, photo_jpegs, damage):
    data = bytearray(tar_of({f"{i}.JPEG": image for i, image in enumerate(photo_jpegs["n01440764"])}))
    second_header = 512 + -(-len(photo_jpegs["n01440764"][0]) // 512) * 512
    if damage == "cut in data":
        del data[second_header + 700 :]
    if damage == "broken header":
        data[second_header : second_header + 200] = np.random.default_rng(0).bytes(200)
    if damage == "compressed":
        data[:4] = b"\x1f\x8b\x08\x00"
    if damage == "empty file":
        data.clear()
    (tmp_path / "n01440764.tar").write_bytes(data)
    with refuses("archive"):
        open_source(tmp_path)


def write_shards(folder: Path, pairs: Pairs, label_as: str) -> None:
    folder.mkdir()
    for shard in range(3):
        files = {}
        for i in range(shard, len(pairs), 3):
            image, label = pairs[i]
            files[f"./part.a/{i:06d}.jpg"] = image
            if label_as == "json":
                files[f"./part.a/{i:06d}.json"] = json.dumps({"label": label, "filename": f"{i}.JPEG"}).encode()
            else:
                files[f"./part.a/{i:06d}.cls"] = str(label).encode()
        (folder / f"photos-train-{shard:04d}.tar").write_bytes(tar_of(files))


@pytest.mark.parametrize("label_as", ["cls", "json"])
def test_webdataset_shards(tmp_path, photo_jpegs, label_as):
    pairs = labelled(photo_jpegs)
    write_shards(tmp_path / "shards", pairs, label_as)
    (tmp_path / "shards" / "classes.txt").write_text("cup\ncat\nrocket\n")
    source = open_source(tmp_path / "shards", "train")
    in_shard_order = [pairs[i] for shard in range(3) for i in range(shard, 24, 3)]
    assert source.classes == ("cup", "cat", "rocket")
    read = [(source.locate(i).read(), int(label)) for i, label in enumerate(source.labels)]
    assert read == in_shard_order
    assert source.names[8] == "photos-train-0001.tar/./part.a/000001.jpg"


def test_a_class_list_is_read_as_a_text_editor_shows_it(tmp_path, photo_jpegs):
    """The lines that editors add at the end are no classes, and what a line's name has around it is not part of it."""
    write_shards(tmp_path / "shards", labelled(photo_jpegs), "cls")
    text = "\ufeffcup\r\n cafe\u0301\u2028x \r\nrocket\r\n\r\n \r\n"
    (tmp_path / "shards" / "classes.txt").write_bytes(text.encode())
    assert open_source(tmp_path / "shards").classes == ("cup", "caf\xe9\u2028x", "rocket")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"cup\n\ncat\nrocket\n", r"classes\.txt, line 2: no class name\. Write one, or remove the line"),
        (
            "cup\ncat\nrocket\n".encode("utf-16"),
            r"classes\.txt: a class name is not UTF-8 text\. Save the list as UTF-8",
        ),
    ],
)
def test_a_class_list_with_a_gap_or_in_another_encoding_is_refused(tmp_path, photo_jpegs, text, message):
    write_shards(tmp_path / "shards", labelled(photo_jpegs), "cls")
    (tmp_path / "shards" / "classes.txt").write_bytes(text)
    with pytest.raises(UserError, match=message):
        open_source(tmp_path / "shards")


def test_a_glob_pattern_selects_shards(tmp_path, photo_jpegs):
    write_shards(tmp_path / "shards", labelled(photo_jpegs), "cls")
    assert len(open_source(tmp_path / "shards" / "*-000[01].tar").names) == 16
    with pytest.raises(UserError, match="no file matches"):
        open_source(tmp_path / "shards" / "*.zip")


def test_samples_without_an_image_are_counted(tmp_path):
    files = {"a.jpg": b"x", "a.cls": b"0", "b.jxl": b"x", "b.cls": b"0", "README": b"x", "c.json": b"{}"}
    (tmp_path / "s.tar").write_bytes(tar_of(files))
    source = open_source(tmp_path)
    assert list(source.names) == ["s.tar/a.jpg"]
    assert source.left_out == {".jxl": 1, ".cls": 1, "": 1, ".json": 1}


@pytest.mark.parametrize("second", ["0.jpg", "0.JPG", "0.cls"])
def test_two_samples_with_one_name_are_refused(tmp_path, second):
    """Otherwise one image is lost, or gets the other one's label. Samples that are not neighbours may share a name."""
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, data in [("0.jpg", b"x"), ("0.cls", b"0"), (second, b"1")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(UserError, match=r"s\.tar: sample 0 has two files of the same kind"):
        open_source(tmp_path)


def test_the_image_of_a_sample_is_its_jpg_and_hidden_files_are_none(tmp_path):
    files = {
        "._0.jpg": b"mac",
        "0.cls": b"0",
        "0.depth.png": b"depth",
        "0.jpg": b"photo",
        "1.cls": b"1",
        "1.input.png": b"b",
    }
    (tmp_path / "s.tar").write_bytes(tar_of(files))
    assert contents(open_source(tmp_path)) == [("0.jpg", 0, b"photo"), ("1.input.png", 1, b"b")]


def write_parquet(path: Path, pairs: Pairs, names: list[str] | None) -> None:
    images = [{"bytes": data, "path": f"photo_{i}.JPEG" if i % 2 else None} for i, (data, _) in enumerate(pairs)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, kind), "label": pa.array([label for _, label in pairs], pa.int64())})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=5)


def test_hugging_face_parquet(tmp_path, photo_jpegs):
    pairs = labelled(photo_jpegs)
    (tmp_path / "data").mkdir()
    for part in range(2):
        path = tmp_path / "data" / f"train-0000{part}-of-00002.parquet"
        write_parquet(path, pairs[part * 12 : part * 12 + 12], ["coffee cup", "cat, tabby", "rocket"])
    source = open_source(tmp_path, "train")
    assert source.classes == ("coffee cup", "cat, tabby", "rocket")
    assert [(source.locate(i).read(), int(label)) for i, label in enumerate(source.labels)] == pairs
    assert list(source.names)[:2] == ["train-00000-of-00002.parquet:0", "photo_1.JPEG"]


def test_plain_parquet_of_bytes_and_numbers(tmp_path, photo_jpegs):
    pairs = labelled(photo_jpegs)
    columns = {"id": np.arange(24), "cls": [label for _, label in pairs], "jpg": [data for data, _ in pairs]}
    pq.write_table(pa.table(columns), tmp_path / "all.parquet")
    source = open_source(tmp_path / "all.parquet")
    assert source.classes == ("0", "1", "2")
    assert source.locate(23).read() == pairs[23][0]
    assert source.labels[23] == pairs[23][1]


@pytest.mark.parametrize(
    ("own", "classes", "expected"),
    [
        (None, ["2", "0", "1"], [1, 2, 0]),
        (None, ["0", "1", "2", "3"], [0, 1, 2]),
        (["cup", "cat", "rocket"], ["cat", "cup", "dog", "rocket"], [1, 0, 3]),
        (
            ["cup", "cat", "rocket"],
            Classes.of(["rocket", "cup", "cat"], ["n0", "n1", "n2"]),
            [1, 2, 0],
        ),  # readable names
        (["n2", "n0", "n1"], Classes.of(["rocket", "cup", "cat"], ["n0", "n1", "n2"]), [2, 0, 1]),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_labels_that_are_numbers_are_numbered_by_name_as_in_the_given_classes(
    tmp_path, photo_jpegs, kind, own, classes, expected
):
    pairs = labelled(photo_jpegs)
    if kind == "parquet":
        write_parquet(tmp_path / "a.parquet", pairs, own)
    else:
        write_shards(tmp_path / "a", pairs, "cls")
        (tmp_path / "a" / "classes.txt").write_text("\n".join(own or ["0", "1", "2"]) + "\n")
        pairs = [pairs[i] for shard in range(3) for i in range(shard, 24, 3)]
    known = classes if isinstance(classes, list) else KnownClasses.of(classes)
    source = open_source(next(tmp_path.iterdir()), classes=known)
    assert source.classes == tuple(known)
    assert source.labels.tolist() == [expected[label] for _, label in pairs]


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_names_that_are_not_given_classes_are_refused_unless_positions_are_meant(tmp_path, photo_jpegs, kind):
    pairs, given = labelled(photo_jpegs), Classes.of(["x", "y", "z"])
    if kind == "parquet":
        write_parquet(tmp_path / "a.parquet", pairs, ["zebra", "lion", "cat"])
    else:
        write_shards(tmp_path / "a", pairs, "cls")
        (tmp_path / "a" / "classes.txt").write_text("zebra\nlion\ncat\n")
    path = next(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"class 'cat' is not one of the 3 training classes.*--classes-by-position"):
        open_source(path, classes=KnownClasses.of(given))
    known = KnownClasses.of(given, by_position=True)
    assert sorted(open_source(path, classes=known).labels.tolist()) == sorted(label for _, label in pairs)
    assert any("as you say" in note for note in known.notes)


def test_shards_that_number_the_same_names_in_another_order_are_read_by_name(tmp_path, photo_jpegs):
    pairs = labelled(photo_jpegs)
    orders = (["cup", "cat", "rocket"], ["rocket", "cup", "cat"])
    for number, (names, part) in enumerate(zip(orders, (pairs[:12], pairs[12:]), strict=True)):
        write_parquet(tmp_path / f"train-{number}.parquet", part, names)
    source = open_source(tmp_path)
    truth = [orders[i >= 12][label] for i, (_, label) in enumerate(pairs)]
    assert [source.classes[k] for k in source.labels] == truth
    write_parquet(tmp_path / "train-2.parquet", pairs, None)
    with pytest.raises(
        UserError, match=r"train-2.parquet: its labels are numbers without names, but .*train-0.parquet names"
    ):
        open_source(tmp_path)


def test_a_number_that_is_not_one_of_the_given_classes_is_refused(tmp_path, photo_jpegs):
    write_parquet(tmp_path / "a.parquet", labelled(photo_jpegs), None)
    with pytest.raises(UserError, match="class '1' is not one of the 3 training classes"):
        open_source(tmp_path, classes=["0", "2", "3"])


def test_unusable_parquet_is_refused_in_one_line(tmp_path, photo_jpegs):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        open_source(path)
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), path)
    with pytest.raises(UserError, match="no image column"):
        open_source(path)
    write_parquet(path, [(photo_jpegs["n01440764"][0], 4)], ["a"])
    with pytest.raises(UserError, match="label 4, but there are only 1 classes"):
        open_source(path)
