"""Several `.beton` files, or some samples of files, as one set of images: one index space, the same pixels."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.format import Beton
from beton_tools.read.manifest import Manifest, manifest_path
from beton_tools.read.parts import Part
from beton_tools.sources import open_source
from beton_tools.write.writer import WriteOptions, write_beton
from fastft.data.stage import SampleError
from tests.data.test_loader import collect, eval_loader, train_loader

PARTS = 3


@pytest.fixture(scope="session")
def parts(indexed_beton: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images of `indexed_beton` in three files, converted from the same photographs."""
    folder = tmp_path_factory.mktemp("parts")
    source = open_source(indexed_beton.parent / "images")
    for number in range(1, PARTS + 1):
        options = WriteOptions(workers=0, part=Part(number, PARTS))
        write_beton(folder / f"train-{number}-of-{PARTS}.beton", source, options)
    return folder


@pytest.fixture
def pattern(parts: Path) -> str:
    return str(parts / "train-*.beton")


def test_batches_of_several_files_are_those_of_the_single_file(pattern, indexed_beton):
    with train_loader(indexed_beton) as one, train_loader(pattern) as several:
        assert collect(several.epoch(1)) == collect(one.epoch(1))
    with eval_loader(indexed_beton) as one, eval_loader(pattern) as several:
        assert collect(several) == collect(one)


def test_files_are_named_as_a_list_or_with_commas_too(parts, pattern):
    paths = sorted(parts.glob("*.beton"))
    expected = BetonSet.open(pattern).content
    assert BetonSet.open(paths).content == expected
    assert BetonSet.open(",".join(map(str, paths))).content == expected
    assert BetonSet.open(f"{paths[0]}, {parts}/train-[23]*.beton").content == expected
    assert BetonSet.open(paths[::-1]).content != expected


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("{parts}/nothing-*.beton", "no file matches"),
        ("{first},{first}", "named twice"),
        ("{first},{parts}/train-*.beton", "named twice"),
        ("{first},{parts}/missing.beton", "missing.beton: cannot be read"),
        ("", "no .beton file is named"),
    ],
)
def test_files_that_cannot_be_opened_together_are_one_line(parts, data, words):
    named = data.format(parts=parts, first=parts / "train-1-of-3.beton")
    with pytest.raises(UserError, match=words):
        BetonSet.open(named)


def test_a_file_beside_a_link_to_it_is_not_used_twice(parts, tmp_path):
    """FFCV's files have no manifest that would tell."""
    shutil.copy(parts / "train-1-of-3.beton", tmp_path / "train.beton")
    (tmp_path / "train-latest.beton").symlink_to("train.beton")
    with pytest.raises(UserError, match=r"train\.beton: named twice, as .*train-latest\.beton too"):
        BetonSet.open(tmp_path / "train*.beton")


@pytest.mark.parametrize("copy", [shutil.copy, os.link])
def test_a_file_beside_its_copy_is_not_used_twice(parts, tmp_path, copy):
    shutil.copy(parts / "train-1-of-3.beton", tmp_path / "train.beton")
    copy(tmp_path / "train.beton", tmp_path / "train-old.beton")
    with pytest.raises(UserError, match=r"train\.beton has the same images as .*train-old\.beton\. Leave one out"):
        BetonSet.open(tmp_path / "train*.beton")


def _with_manifest(path: Path, target: Path, **changes: object) -> Path:
    """A copy of a file, with another manifest."""
    shutil.copy(path, target)
    manifest = Manifest.of_beton(path)
    assert manifest is not None
    Manifest(**{**{f: getattr(manifest, f) for f in manifest.__dataclass_fields__}, **changes}).save(
        manifest_path(target)
    )
    return target


def test_files_with_other_classes_are_one_line_that_names_the_class(parts, tmp_path):
    first, second = sorted(parts.glob("*.beton"))[:2]
    classes = list(Manifest.of_beton(second).classes)
    other = _with_manifest(second, tmp_path / "a.beton", classes=[*classes[:2], "other", *classes[3:]])
    with pytest.raises(UserError, match=r"class 2 is other, but in .* it is class2. Convert it with --classes-of"):
        BetonSet.open([first, other])
    longer = _with_manifest(second, tmp_path / "b.beton", classes=[*classes, "more"])
    with pytest.raises(UserError, match=r"b.beton has 6 classes, .* 5. Convert it with --classes-of"):
        BetonSet.open([first, longer])


def test_a_file_without_manifest_joins_others_only_if_the_user_says_so(parts, tmp_path):
    first, second, _ = sorted(parts.glob("*.beton"))
    bare = Path(shutil.copy(second, tmp_path / "bare.beton"))
    with pytest.raises(UserError, match=r"bare.beton has no manifest .*, but .*train-1-of-3.beton has one"):
        BetonSet.open([bare, first])
    joined = BetonSet.open([bare, first], classes_by_position=True)
    assert joined.class_names == BetonSet.open(first).class_names
    assert joined.content.has_same_images(BetonSet.open([second, first]).content)


def test_a_damaged_sample_is_named_by_its_file(parts, tmp_path):
    for path in parts.iterdir():
        shutil.copy(path, tmp_path)
    second = Beton.open(tmp_path / "train-2-of-3.beton")
    with second.path.open("r+b") as file:
        file.seek(int(second.pointers[4]))
        file.write(b"\0" * 8)
    with (
        eval_loader(str(tmp_path / "*.beton")) as loader,
        pytest.raises(SampleError, match=r"train-2-of-3.beton: sample 4") as caught,
    ):
        list(loader)
    assert caught.value.sample == int(loader.betons.starts[1]) + 4


def test_a_missing_part_of_a_conversion_is_noted(parts, pattern):
    with train_loader(pattern) as loader:
        assert not any("parts" in note for note in loader.notes)
    with train_loader([parts / "train-1-of-3.beton", parts / "train-3-of-3.beton"]) as loader:
        assert any("parts 2/3 of the conversion are missing among the files" in note for note in loader.notes)


@pytest.mark.parametrize("order", ["random", "blocks"])
def test_training_sees_each_sample_once_and_the_same_from_parts(order: str, indexed_beton: Path, pattern: str) -> None:
    chosen = np.flatnonzero(np.arange(44) % 5)
    epochs = []
    for data in (indexed_beton, pattern):
        taken = BetonSet.open(data).take(chosen)
        with train_loader(taken, order=order, block_mib=1, batch_size=7, micro_batch=7) as loader:
            assert loader.num_samples == len(chosen)
            seen = collect(loader.epoch(1))
        ids = [i for i, _, _ in seen.values()]
        assert sorted(ids) == list(range(len(chosen)))
        assert [label for _, label, _ in seen.values()] == taken.labels[ids].tolist()
        epochs.append({i: (label, image) for i, label, image in seen.values()})
    assert epochs[0] == epochs[1]
