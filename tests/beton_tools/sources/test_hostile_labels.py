"""A label that is not a class number is refused in one line, whatever the source, before memory is allocated for it."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beton_tools import UserError
from beton_tools.read.format import MAX_CLASSES
from beton_tools.sources import open_source
from tests.beton_tools.conftest import tar_of
from tests.beton_tools.sources.test_hostile_headers import check_refused

TOO_LARGE = [MAX_CLASSES, 10**9, 10**12, 1 << 63, 1 << 64]


@pytest.mark.parametrize("suffix", ["cls", "json"])
@pytest.mark.parametrize(
    "text",
    [*map(str, TOO_LARGE), "-1", "1.0", "1e3", "true", "null", "[1]", "9" * 5000, "NaN", "٣"],
    ids=lambda t: t[:8],
)
def test_label_files(tmp_path, text, suffix):
    data = (text if suffix == "cls" else f'{{"label": {text}}}').encode()
    (tmp_path / "s.tar").write_bytes(tar_of({"a.jpg": b"x", f"a.{suffix}": data}))
    check_refused(tmp_path, r"s\.tar: sample a has no usable label")


@pytest.mark.parametrize("text", ["", "{}", "[" * 100_000, '{"a":' * 100_000, "\ud800"], ids=lambda t: t[:4])
def test_json_files_without_a_label(tmp_path, text):
    data = text.encode("utf-8", "surrogatepass")
    (tmp_path / "s.tar").write_bytes(tar_of({"a.jpg": b"x", "a.json": data}))
    check_refused(tmp_path, r"s\.tar: sample a has no usable label")


@pytest.mark.parametrize("suffix", ["cls", "json"])
def test_oversized_label_files(tmp_path, suffix):
    (tmp_path / "s.tar").write_bytes(tar_of({"a.jpg": b"x", f"a.{suffix}": b" " * (2 << 20)}))
    check_refused(tmp_path, "2,097,152 bytes in its label file")


@pytest.mark.parametrize("label", TOO_LARGE[:-1])
def test_parquet_labels(tmp_path, label):
    kind = pa.uint64() if label >= 1 << 63 else pa.int64()
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": pa.array([0, label], kind)}), tmp_path / "a.parquet")
    check_refused(tmp_path, rf"a\.parquet: label {label}, expected a number from 0 to {MAX_CLASSES - 1}")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pa.array([0, -3], pa.int8()), "label -3 is negative"),
        (pa.array([True, False]), "label is of the type bool; labels must be integers or names"),
        (pa.array([0.0, 1.0]), "label is of the type double; labels must be integers or names"),
        (pa.array(["0", None]), "row 3: no label"),
        (pa.array([0, None], pa.int64()), "1 rows have no label"),
    ],
)
def test_parquet_labels_that_are_not_class_numbers(tmp_path, labels, message):
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": labels}), tmp_path / "a.parquet")
    check_refused(tmp_path, message)


def test_the_largest_label_is_accepted(tmp_path):
    (tmp_path / "s.tar").write_bytes(tar_of({"a.jpg": b"x", "a.cls": f" {MAX_CLASSES - 1}\n".encode()}))
    assert len(open_source(tmp_path).classes) == MAX_CLASSES


def test_a_list_of_too_many_classes(tmp_path):
    (tmp_path / "s.tar").write_bytes(tar_of({"a.jpg": b"x", "a.cls": b"0"}))
    (tmp_path / "classes.txt").write_text("x\n" * (MAX_CLASSES + 1))
    with pytest.raises(UserError, match="1,048,577 classes; give at most 1,048,576"):
        open_source(tmp_path)


@pytest.mark.parametrize("number", ["9" * 5000, "²", "٣", "-1", "1000"], ids=lambda n: n[:4])
def test_class_numbers_of_a_text_file(tmp_path, number):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "val.txt").write_text(f"a.jpg {number}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"val\.txt: (class|label)") as caught:
        open_source(tmp_path, classes=["cat", "dog"])
    assert "\n" not in str(caught.value)


def features(names: Any) -> str:
    return json.dumps({"info": {"features": {"label": {"names": names}}}})


@pytest.mark.parametrize(
    "metadata",
    ["[" * 100_000, '{"a":' * 100_000, "[1]", "null", b"\xff", "", features("ab"), features([]), '{"info": 3}'],
    ids=lambda m: str(m)[:12],
)
def test_unusable_metadata_of_hugging_face_is_ignored(tmp_path, metadata):
    table = pa.table({"image": [b"x"], "label": [1]}).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "a.parquet")
    assert open_source(tmp_path).classes == ("0", "1")


def test_class_names_of_hugging_face_need_not_be_valid_text(tmp_path):
    table = pa.table({"image": [b"x"], "label": [1]})
    names = '{"info": {"features": {"label": {"names": ["a\\ud800", [1]]}}}}'
    pq.write_table(table.replace_schema_metadata({"huggingface": names}), tmp_path / "a.parquet")
    assert open_source(tmp_path).classes == ("a?", "[1]")
