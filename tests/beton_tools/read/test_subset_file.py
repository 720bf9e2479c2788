"""Some samples of `.beton` files: the same images under new ids, from the same files, in a small file of their own."""

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.manifest import Manifest, manifest_path
from beton_tools.read.parts import Part
from beton_tools.read.subset_file import listed_files
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from tests.refusals import refuses

CHOSEN = np.array([0, 3, 4, 11, 17, 30, 31, 47])


@pytest.fixture(scope="module", params=["one file", "three parts"])
def data(request: pytest.FixtureRequest, tiny: dict[str, str], tmp_path_factory) -> str:
    if request.param == "one file":
        return tiny["data.train"]
    folder = tmp_path_factory.mktemp("parts")
    for number in (1, 2, 3):
        options = WriteOptions(workers=0, part=Part(number, 3))
        convert_folder(Path(tiny["data.train"]).parent / "train", folder / "train.beton", options)
    return str(folder / "*.beton")


@pytest.fixture
def copied(tiny: dict[str, str], tmp_path: Path) -> Path:
    path = tmp_path / "some.beton"
    shutil.copy(tiny["data.train"], path)
    shutil.copy(manifest_path(tiny["data.train"]), manifest_path(path))
    return path


def write(betons: BetonSet, path: Path) -> Path:
    path.write_text(betons.as_subset_file().to_json())
    return path


def same_images(found: BetonSet, whole: BetonSet, ids: np.ndarray) -> bool:
    assert len(found) == len(ids) and np.array_equal(found.labels, whole.labels[ids])
    for column in ("heights", "widths", "modes", "sizes"):
        assert np.array_equal(getattr(found, column), getattr(whole, column)[ids])
    return all(found.read_bytes(k) == whole.read_bytes(i) for k, i in enumerate(ids.tolist()))


def test_a_subset_has_the_images_labels_and_names_of_the_chosen_samples(data, tmp_path):
    whole = BetonSet.open(data)
    taken = whole.take(CHOSEN)
    opened = BetonSet.open(write(taken, tmp_path / "x.subset.json"))
    names = whole.read_names()
    for found in (taken, opened):
        assert same_images(found, whole, CHOSEN)
        assert found.read_names() == [names[i] for i in CHOSEN]
        assert found.class_names == whole.class_names
        assert found.class_counts == np.bincount(whole.labels[CHOSEN], minlength=2).tolist()
        assert found.largest.num_bytes == whole.sizes[CHOSEN].max()
        assert found.content == taken.content
    assert listed_files(str(tmp_path / "x.subset.json"))[1] == "8 of 48 images"


def test_errors_name_the_file_and_the_id_that_the_sample_has_there(data):
    whole = BetonSet.open(data)
    taken = whole.take(CHOSEN)
    for k, i in enumerate(CHOSEN.tolist()):
        (file, own_id), (expected, expected_id) = taken.locate(k), whole.locate(i)
        assert (file.path, own_id) == (expected.path, expected_id)
        assert taken.read_names()[k] == Manifest.of_beton(file.path).names[own_id]


def test_a_subset_of_a_subset_names_the_samples_of_the_files(data, tmp_path):
    whole = BetonSet.open(data)
    inner = whole.take(CHOSEN).take(np.array([1, 2, 6]))
    assert same_images(BetonSet.open(write(inner, tmp_path / "x.subset.json")), whole, CHOSEN[[1, 2, 6]])


def test_other_samples_of_the_same_file_are_other_data(data):
    whole = BetonSet.open(data)
    contents = [whole, whole.take(CHOSEN), whole.take(CHOSEN + np.array([0] * 7 + [-1]))]
    assert len({msgspec.json.encode(found.content) for found in contents}) == 3


def test_a_file_without_a_manifest_is_identified_too(copied, tmp_path):
    manifest_path(copied).unlink()
    whole = BetonSet.open(copied)
    opened = BetonSet.open(write(whole.take(CHOSEN), tmp_path / "x.subset.json"))
    assert same_images(opened, whole, CHOSEN) and opened.read_names() is None
    assert opened.content != whole.take(CHOSEN - np.array([0, 1] + [0] * 6)).content


def test_a_changed_file_is_refused(copied, tiny, tmp_path):
    path = write(BetonSet.open(copied).take(CHOSEN), tmp_path / "x.subset.json")
    copied.unlink()
    convert_folder(
        Path(tiny["data.train"]).parent / "train", copied, WriteOptions(workers=0, quality=50, lossless=False)
    )
    with pytest.raises(UserError, match=r"some\.beton has changed since .*x\.subset\.json was made from it. Restore"):
        BetonSet.open(path)
    copied.unlink()
    with pytest.raises(UserError, match=r"some\.beton: no such file, but .*x\.subset\.json lists samples in it"):
        BetonSet.open(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "beton"}, "its format is not"),
        ({"files": []}, "its files: Expected array of length >= 1"),
        ({"samples": [3, 2]}, "not ascending numbers from 0 to 47"),
        ({"samples": [-1, 2]}, "Expected int >= 0"),
        ({"samples": [2, 48]}, "not ascending"),
    ],
)  # fmt: skip
def test_a_damaged_subset_file_is_one_line(change, message, tiny, tmp_path):
    path = write(BetonSet.open(tiny["data.train"]).take(CHOSEN), tmp_path / "x.subset.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with refuses(message):
        BetonSet.open(path)


def test_text_that_is_no_json_and_further_files_are_refused(tiny, tmp_path):
    path = tmp_path / "x.subset.json"
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="not a subset file"):
        BetonSet.open(path)
    with pytest.raises(UserError, match="must be used alone"):
        BetonSet.open([path, tiny["data.train"]])
