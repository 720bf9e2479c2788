"""What is trained is what the files' names say: for every source format, checked by decoding the images.

Each class has a colour. An image's colour tells which class it is of, whatever label it has got on its way.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.manifest import manifest_path
from beton_tools.read.parts import Part
from beton_tools.write.convert import convert_folder
from beton_tools.write.images import decode_sample
from beton_tools.write.writer import WriteOptions
from fastft.data.warnings import data_warnings, describe_betons
from fastft.recipe import load_recipe
from fastft.recipe.training_images import with_images
from fastft.run.inputs import open_inputs
from tests.beton_tools.conftest import tar_of

# WordNet ids of a tench, a goldfish, and two classes that are both called "crane"
COLOURS = {
    "n01440764": (230, 20, 20),
    "n01443537": (20, 230, 20),
    "n02012849": (20, 20, 230),
    "n03126707": (230, 230, 20),
    "n07753592": (20, 230, 230),  # a banana, which the training images lack
}
CLASSES = [*COLOURS][:4]
PER_CLASS, GROUP = 6, 3


class Item(NamedTuple):
    name: str
    wnid: str
    data: bytes
    group: str


def photo(wnid: str, i: int, clear: bool = False) -> bytes:
    """A PNG of the class's colour with a mark, no two alike. clear: transparent but for the mark's column."""
    pixels = np.full((24, 24, 4), (*COLOURS[wnid], 255), np.uint8)
    pixels[i % 24, (i // 24) % 24, :3] = 128
    if clear:
        pixels[:, :12, 3] = 0
    buffer = io.BytesIO()
    Image.fromarray(pixels if clear else pixels[..., :3]).save(buffer, "PNG")
    return buffer.getvalue()


def items(classes: list[str], first: int = 0, clear: bool = False) -> list[Item]:
    numbers = range(first, first + PER_CLASS)
    return [Item(f"{w}_{i}.png", w, photo(w, i, clear), f"g{i // GROUP}") for i in numbers for w in classes]


def folder(root: Path, given: list[Item], classes: list[str]) -> Path:
    for item in given:
        (root / item.wnid).mkdir(parents=True, exist_ok=True)
        (root / item.wnid / item.name).write_bytes(item.data)
    return root


def flat(root: Path, given: list[Item], classes: list[str]) -> Path:
    root.mkdir()
    for item in given:
        (root / item.name).write_bytes(item.data)
    (root / "val.txt").write_text("".join(f"{item.name} {item.wnid}\n" for item in given))
    return root


def csv(root: Path, given: list[Item], classes: list[str]) -> Path:
    folder(root, given, classes)
    rows = [f"{item.wnid}/{item.name},{item.wnid},{item.group}" for item in given]
    (root / "t.csv").write_text("\n".join(["path,label,group", *rows]) + "\n")
    return root / "t.csv"


def parquet_of_paths(root: Path, given: list[Item], classes: list[str]) -> Path:
    folder(root, given, classes)
    paths = [f"{item.wnid}/{item.name}" for item in given]
    table = {"path": paths, "label": [i.wnid for i in given], "group": [i.group for i in given]}
    pq.write_table(pa.table(table), root / "t.parquet")
    return root / "t.parquet"


def parquet(root: Path, given: list[Item], classes: list[str]) -> Path:
    """Two files whose ClassLabel lists differ in order."""
    root.mkdir()
    for k, names in enumerate((classes, classes[::-1])):
        part = given[k::2]
        table = pa.table({
            "image": [{"bytes": item.data, "path": item.name} for item in part],
            "label": [names.index(item.wnid) for item in part],
            "group": [item.group for item in part],
        })  # fmt: skip
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), root / f"{k}.parquet")
    return root


def parquet_of_names(root: Path, given: list[Item], classes: list[str]) -> Path:
    root.mkdir()
    table = {
        "image": [item.data for item in given],
        "label": [i.wnid for i in given],
        "group": [i.group for i in given],
    }
    pq.write_table(pa.table(table), root / "a.parquet")
    return root / "a.parquet"


def webdataset(root: Path, given: list[Item], classes: list[str]) -> Path:
    root.mkdir()
    files = {}
    for item in given:
        stem = item.name.removesuffix(".png")
        files |= {item.name: item.data, f"{stem}.cls": str(classes.index(item.wnid)).encode()}
    (root / "a.tar").write_bytes(tar_of(files))
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    return root


def class_tars(root: Path, given: list[Item], classes: list[str]) -> Path:
    root.mkdir()
    for wnid in classes:
        own = {item.name.replace(".png", ".JPEG"): item.data for item in given if item.wnid == wnid}
        if own:
            (root / f"{wnid}.tar").write_bytes(tar_of(own))
    return root


WITH_GROUPS = {
    "csv": csv,
    "parquet of paths": parquet_of_paths,
    "parquet": parquet,
    "parquet of names": parquet_of_names,
}
FORMATS: dict[str, Callable[[Path, list[Item], list[str]], Path]] = {
    "folder": folder, "flat": flat, **WITH_GROUPS, "webdataset": webdataset, "class tars": class_tars,
}  # fmt: skip


@pytest.fixture(params=FORMATS)
def write(request: pytest.FixtureRequest) -> Callable[[Path, list[Item], list[str]], Path]:
    return FORMATS[request.param]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training file of four classes, from class folders."""
    root = tmp_path_factory.mktemp("train")
    return convert(folder(root / "train", items(CLASSES), CLASSES), root / "train.beton")


def convert(data: Path, out: Path, classes_of: Path | None = None, **options: object) -> Path:
    convert_folder(data, out, WriteOptions(workers=0, **options), classes_of=classes_of)  # type: ignore[arg-type]
    return out


def seen(betons: BetonSet) -> list[str]:
    """Each image's class by its colour."""
    pixels = [np.median(decode_sample(betons, i), axis=(0, 1)) for i in range(len(betons))]
    ids, colours = [*COLOURS], np.array([*COLOURS.values()])
    return [ids[int(np.abs(colours - own).sum(1).argmin())] for own in pixels]


def said(betons: BetonSet) -> list[str]:
    """Each image's class by its label."""
    assert betons.known_classes.ids is not None
    return [betons.known_classes.ids[label] for label in betons.labels.tolist()]


def test_any_format_and_order_of_classes_is_labelled_by_the_names(write, tmp_path):
    order = [CLASSES[k] for k in (2, 0, 3, 1)]
    found = BetonSet.open(convert(write(tmp_path / "data", items(order), order), tmp_path / "a.beton"))
    assert said(found) == seen(found) and sorted(said(found)) == sorted(CLASSES * PER_CLASS)


@pytest.mark.parametrize("classes", [CLASSES[::-1], [CLASSES[3], CLASSES[1]]], ids=["another order", "missing classes"])
def test_validation_images_get_the_labels_of_the_training_file(write, classes, train, tmp_path):
    data = write(tmp_path / "data", items(classes, first=20), classes)
    val = BetonSet.open(convert(data, tmp_path / "val.beton", train))
    files = BetonSet.open(train)
    assert said(val) == seen(val) and val.known_classes == files.known_classes
    lacking = [text for text in data_warnings(*describe_betons(files, val)) if "no validation images" in text]
    assert len(lacking) == (len(classes) < len(CLASSES))


def test_a_foreign_class_is_refused(write, train, tmp_path):
    classes = [CLASSES[0], "n07753592"]
    data = write(tmp_path / "data", items(classes), classes)
    with pytest.raises(UserError, match="class 'n07753592' is not one of the 4 training classes"):
        convert(data, tmp_path / "val.beton", train)
    assert not list(tmp_path.glob("val*"))


def test_classes_of_equal_names_stay_apart(write, train, tmp_path):
    cranes = CLASSES[:1:-1]
    found = BetonSet.open(convert(write(tmp_path / "data", items(cranes), cranes), tmp_path / "a.beton", train))
    assert {*said(found)} == {*cranes} and said(found) == seen(found)
    assert {found.class_names[k] for k in found.labels.tolist()} == {"crane (n02012849)", "crane (n03126707)"}


def test_parts_are_the_whole_or_are_refused(write, tmp_path):
    data = write(tmp_path / "data", items(CLASSES), CLASSES)
    for number in (1, 2):
        convert(data, tmp_path / "p.beton", part=Part(number, 2), shuffle_seed=1)
    whole = BetonSet.open(str(tmp_path / "p-*.beton"))
    names = whole.read_names()
    assert said(whole) == seen(whole) and names is not None and len({*names}) == len(names) == 4 * PER_CLASS
    (tmp_path / "p-2-of-2.beton").unlink()
    convert(data, tmp_path / "p.beton", part=Part(2, 2))
    with pytest.raises(UserError, match=r"parts of different conversions \(shuffle_seed"):
        BetonSet.open(str(tmp_path / "p-*.beton"))
    (tmp_path / "p-2-of-2.beton").unlink()
    more = write(tmp_path / "more", items(CLASSES, first=20), CLASSES)  # the source has other images
    convert(more, tmp_path / "p.beton", part=Part(2, 2), shuffle_seed=1)
    with pytest.raises(UserError, match=r"parts of different conversions"):
        BetonSet.open(str(tmp_path / "p-*.beton"))


@pytest.mark.parametrize("format", WITH_GROUPS)
def test_groups_and_identical_images_stay_on_one_side_of_the_selection(format, tmp_path):
    given = [item for first in range(0, 48, PER_CLASS) for item in items(CLASSES, first)]
    twins = [item._replace(name=f"twin_{item.name}", group="") for item in given[::5]]
    data = FORMATS[format](tmp_path / "data", given + twins, CLASSES)
    convert(data, tmp_path / "a.beton")
    _, files = open_inputs(
        load_recipe("photos", [f"--data.train={tmp_path / 'a.beton'}", "--data.selection_share=0.25"])
    )
    assert files.selection is not None and said(files.selection) == seen(files.selection)
    sides = []
    for side in (files.train, files.selection):
        groups, contents = side.read_groups(), side.read_contents()
        assert groups is not None and contents is not None
        sides.append(({*groups} - {""}, {*contents.tolist()}))
    (own, images), (left, other) = sides
    assert own and left and not own & left and not images & other
    share = len(files.selection) / (len(given) + len(twins))
    assert 0.15 < share < 0.35 and {*said(files.train)} == {*CLASSES}


def test_the_background_of_the_file_is_the_one_of_the_recipe(write, tmp_path):
    data = write(tmp_path / "data", items(CLASSES, clear=True), CLASSES)
    convert(data, tmp_path / "a.beton", background="black")
    betons = BetonSet.open(tmp_path / "a.beton")
    assert all(decode_sample(betons, i)[:, :12].max() == 0 for i in range(len(betons)))
    recipe = load_recipe("photos", [f"--data.train={tmp_path / 'a.beton'}"])
    assert with_images(recipe, open_inputs(recipe)[1].images).data.background == "black"
    red = load_recipe("photos", [f"--data.train={tmp_path / 'a.beton'}", "--data.background=red"])
    with pytest.raises(UserError, match=r"converted with --background black, but --data.background is red"):
        with_images(red, open_inputs(red)[1].images)


def test_a_file_without_a_manifest_is_used_alone_and_never_by_chance_beside_named_ones(write, train, tmp_path):
    """As a file from FFCV's writer: labels are numbers, and what they mean is not written anywhere."""
    part = [CLASSES[1], CLASSES[3]]
    bare = convert(write(tmp_path / "data", items(part), part), tmp_path / "bare.beton")
    manifest_path(bare).unlink()
    assert BetonSet.open(bare).class_names == ["class 0", "class 1"]
    with pytest.raises(UserError, match=r"bare.beton has no manifest that names its classes"):
        BetonSet.open([train, bare])
    with pytest.raises(UserError, match=r"has labels for 2 classes, but .* has 4"):
        open_inputs(load_recipe("photos", [f"--data.train={train}", f"--data.val={bare}"]))
