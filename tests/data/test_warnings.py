"""Warnings about images and classes: the same in convert, explain and train, each one line with a count and an example."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.cli import main
from fastft.data.warnings import Labelled, data_warnings
from fastft.jobs.decided import decide
from fastft.recipe import load_recipe
from fastft.run.inputs import open_inputs, warn_of_images
from tests.written import write_crops


def of_classes(*names: str, per_class: int = 2, labels: list[int] | None = None) -> Labelled:
    own = np.arange(len(names)).repeat(per_class) if labels is None else np.array(labels)
    return Labelled("x", names, own, lambda: [f"{i}.jpg" for i in range(len(own))], np.arange(len(own)))


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (["Cat", "cat"], "'Cat' and 'cat'"),
        (["cat", "cat ", "dog"], "'cat' and 'cat '"),
        (["red  car", "red_car"], "'red  car' and 'red_car'"),
        (["ｃａｔ", "cat"], "'ｃａｔ' and 'cat'"),  # full width
        (["cat", "сat"], "'cat' and 'сat'"),  # a Cyrillic letter
        (["1", "01", "2"], "'1' and '01'"),
        (["1", "1.0", "2"], "'1' and '1.0'"),
    ],
)
def test_class_names_that_people_take_for_the_same_are_named(names, pair):
    (line,) = data_warnings(of_classes(*names))
    assert line.startswith("1 pair of class names differs only in case") and line.endswith(f": {pair}")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["cat", "nan"], "1 class is called like a missing value: nan"),
        (["NA", "None", "cat"], "2 classes are called like a missing value: NA, None"),
        (["cat", "unlabeled"], "1 class is called like a folder for images without labels"),
        (["Unsorted", "misc", "cat"], "2 classes are called like a folder for images without labels"),
    ],
)
def test_classes_that_are_none_are_named(names, words):
    (line,) = data_warnings(of_classes(*names))
    assert line.startswith(words)


def test_usual_names_give_no_warning():
    for names in (["0", "1", "10", "2"], ["crane (n02012849)", "crane (n03126707)"], ["α", "β", "b"], ["cat", "other"]):
        assert data_warnings(of_classes(*names)) == []


def test_empty_and_lacking_classes_are_counted():
    train, val = of_classes("a", "b", "c", labels=[0, 0, 1, 1]), of_classes("a", "b", "c", labels=[1, 1])
    assert data_warnings(train) == ["1 class has no images: c"]
    assert "1 class has no validation images, so nothing is said about it: a" in data_warnings(train, val)


@pytest.fixture
def sets(photographs: dict[str, np.ndarray], tmp_path: Path) -> tuple[Path, Path]:
    """Class folders for training and validation with everything that a warning is for."""
    train, val = tmp_path / "train", tmp_path / "val"
    write_crops(train, photographs, dict.fromkeys(("astronaut", "chelsea", "coffee", "rocket"), 12))
    (train / "coffee").rename(train / "Chelsea")
    (train / "rocket").rename(train / "unlabeled")
    shutil.copy(train / "astronaut/00.png", train / "chelsea/twin.png")
    frames = [Image.fromarray(photographs["coffee"][k : k + 64, :64]) for k in (0, 50)]
    frames[0].save(train / "astronaut/moving.gif", save_all=True, append_images=frames[1:])
    (val / "astronaut").mkdir(parents=True)
    (val / "Chelsea").mkdir()
    shutil.copy(train / "astronaut/03.png", val / "astronaut/seen.png")
    Image.fromarray(photographs["china"][:64, :64]).save(val / "Chelsea/new.png")
    return train, val


EXPECTED = [
    "1 pair of class names differs only in case, spaces, width, look-alike letters or how a number is written, and are "
    "trained as different classes: 'Chelsea' and 'chelsea'",
    "1 class is called like a folder for images without labels, but trained as a class like the others: unlabeled",
    "1 image appears in several classes: astronaut/00.png",
    "2 classes have no validation images, so nothing is said about them: chelsea, unlabeled",
    "1 validation image is also a training image, so accuracy will be too high: astronaut/seen.png",
]
ANIMATION = "1 image is an animation, whose first frame is kept"


def test_convert_explain_and_train_say_the_same_of_photographs_and_of_betons(sets, tmp_path, capsys):
    train, val = sets
    options = WriteOptions(workers=0)
    convert_folder(train, tmp_path / "train.beton", options)
    capsys.readouterr()
    common = ["--workers=0", f"--classes-of={tmp_path / 'train.beton'}"]
    assert main(["convert", "folder", f"--data={val}", f"--out={tmp_path / 'val.beton'}", *common]) == 0
    lines = capsys.readouterr().out.splitlines()
    converted = [line.split("warning: ")[1] for line in lines if "warning: " in line]
    recipe = load_recipe("photos", [f"--data.train={tmp_path / 'train.beton'}", f"--data.val={tmp_path / 'val.beton'}"])
    explained = decide(recipe)[2]
    _, inputs = open_inputs(recipe)
    trained = warn_of_images(recipe, inputs.train, inputs.val)
    for warnings in (converted, explained, trained):
        assert [line for line in warnings if ANIMATION not in line] == EXPECTED
        assert sum(ANIMATION in line for line in warnings) == 1
    pictures = load_recipe(
        "photos", [f"--data.train={train}", f"--data.val={val}", f"--train.run_dir={tmp_path / 'run'}"]
    )
    of_photos = decide(pictures)[2]
    assert [line for line in of_photos if ANIMATION not in line] == EXPECTED
    assert sum(ANIMATION in line for line in of_photos) == 1
