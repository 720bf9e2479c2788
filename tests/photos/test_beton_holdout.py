"""A lone .beton gets the hold-out of a folder, trains as the folder does, and no image is copied."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from beton_tools.read.beton_set import BetonSet
from beton_tools.read.manifest import manifest_path
from beton_tools.read.parts import Part
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.cli import main
from fastft.evaluate.evaluation import evaluate_checkpoint
from fastft.jobs.decided import decide
from fastft.jobs.run import run_recipe as train
from fastft.photos.prepare import prepare_data
from fastft.photos.same_images import as_source, content_ids
from fastft.recipe import Recipe, load_recipe
from tests.photos.conftest import CLASSES, PER_CLASS
from tests.photos.test_prepare import QUIET, prepared, said_of, split_of, with_words
from tests.train.runs import differing, end, losses

WRITE = WriteOptions(workers=0)


@pytest.fixture(scope="session")
def album_beton(album: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("beton") / "album.beton"
    convert_folder(album, path, WRITE)
    return path


@pytest.fixture
def copied(album_beton: Path, tmp_path: Path) -> Path:
    path = tmp_path / "copied.beton"
    shutil.copy(album_beton, path)
    shutil.copy(manifest_path(album_beton), manifest_path(path))
    return path


@pytest.fixture(scope="session")
def trained(album_beton: Path, tower: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the lone .beton that nothing interrupted."""
    run = tmp_path_factory.mktemp("trained") / "run"
    train(load_recipe("photos", options(album_beton, run, tower)), QUIET)
    return run


def options(data: Path | str, run: Path, tower: list[str]) -> list[str]:
    return [f"--data.train={data}", f"--train.run_dir={run}", *tower]


def sides(recipe: Recipe) -> tuple[list[bytes], list[bytes]]:
    """The images of both sides."""
    opened = [BetonSet.open(str(path)) for path in (recipe.data.train, recipe.data.val)]
    train, val = ([betons.read_bytes(i) for i in range(len(betons))] for betons in opened)
    return train, val


# the hold-out of a folder -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_beton_and_its_parts_train_bit_for_bit_as_the_folder(album, trained, tower, tmp_path):
    for number in (1, 2):
        convert_folder(album, tmp_path / "parts" / "album.beton", WriteOptions(workers=0, part=Part(number, 2)))
    runs = {"parts": tmp_path / "parts" / "*.beton", "folder": album}
    for name, data in runs.items():
        train(load_recipe("photos", options(data, tmp_path / name, tower)), QUIET)
    expected = json.loads((tmp_path / "folder" / "result.json").read_text())
    del expected["baseline"]["seconds"]
    assert expected["baseline"]["images"] == 29 and expected["baseline"]["raw"]["samples"] == 7
    for run in (trained, tmp_path / "parts"):
        assert split_of(run) == split_of(tmp_path / "folder")
        assert differing(end(run), end(tmp_path / "folder")) == []
        assert losses(run) == losses(tmp_path / "folder")
        result = json.loads((run / "result.json").read_text())
        del result["baseline"]["seconds"]
        assert result["baseline"] == expected["baseline"]
        assert [e["raw"] for e in result["evaluations"]] == [e["raw"] for e in expected["evaluations"]]
        assert sum(f.stat().st_size for f in (run / "data").iterdir()) < 10_000  # no image


def test_explain_shows_what_the_training_has_chosen(album_beton, trained, tower, tmp_path, capsys):
    assert main(["explain", "photos", *options(album_beton, tmp_path / "run", tower), "--json"]) == 0
    explained = json.loads(capsys.readouterr().out)
    chosen = json.loads((trained / "choices.json").read_text())["choices"]
    # which the training may change before its first step
    by_probe = {"augment.policy", "augment.scale_min", "augment.ratio_min", "augment.ratio_max", "augment.hflip"}
    assert [c["option"] for c in explained["choices"]] == [c["option"] for c in chosen]
    for before, after in zip(explained["choices"], chosen, strict=True):
        assert before == after or before["option"] in by_probe
    assert chosen[0]["value"] == 3
    assert explained["recipe"]["data"]["train_size"] == 29


def test_both_sides_are_disjoint_and_complete_and_without_a_manifest_too(copied, tmp_path):
    every = sorted(BetonSet.open(copied).read_bytes(i) for i in range(3 * PER_CLASS))
    recipe = prepared(copied, tmp_path / "named")
    named = sides(recipe)
    assert sorted(named[0] + named[1]) == every and len(named[1]) == 7
    assert set(BetonSet.open(str(recipe.data.val)).labels.tolist()) == {0, 1, 2}
    manifest_path(copied).unlink()
    assert sides(prepared(copied, tmp_path / "unnamed")) == named
    assert {"copied.beton[0]", "copied.beton[35]"} < split_of(tmp_path / "unnamed").keys()


def test_identical_images_stay_on_one_side(album, tmp_path):
    for name in CLASSES:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3 * PER_CLASS):
            os.link(album / name / f"{i % PER_CLASS:02}.jpg", tmp_path / "photos" / name / f"{i:02}.jpg")
    convert_folder(tmp_path / "photos", tmp_path / "copies.beton", WRITE)
    train, val = sides(prepared(tmp_path / "copies.beton", tmp_path / "run"))
    assert val and not set(train) & set(val)
    assert split_of(tmp_path / "run") == split_of_folder(tmp_path / "photos", tmp_path / "folder")


def split_of_folder(photos: Path, run: Path) -> dict[str, str]:
    prepared(photos, run)
    return split_of(run)


def test_images_of_one_size_and_one_end_are_compared_whole(tmp_path, photographs):
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    image = np.ascontiguousarray(photographs["coffee"][:40, :40])
    other = image.copy()
    other[0, 0] ^= 255
    rows = [(image, 0), (other, 0), (image, 1), (other, 1)]
    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    DatasetWriter(str(tmp_path / "raw.beton"), fields, num_workers=1).from_indexed_dataset(rows)
    (ids,) = content_ids([as_source(BetonSet.open(tmp_path / "raw.beton"))])
    assert ids[0] == ids[2] != ids[1] == ids[3]


# used by what follows ---------------------------------------------------------------------------------------------------


def test_evaluation_and_report_use_the_hold_out(trained, tmp_path, refused):
    held = [name for name, side in split_of(trained).items() if side == "val"]
    table = tmp_path / "table.csv"
    scores = evaluate_checkpoint(trained, None, "cpu", csv=table, weights="raw")
    last = json.loads((trained / "result.json").read_text())["evaluations"][-1]["raw"]
    assert (scores.samples, scores.top1) == (7, last["top1"])
    with table.open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == held
    assert main(["report", str(trained), "--out", str(tmp_path / "report.html")]) == 0
    assert "a subset of one. Use fastft eval --csv" in refused(
        ["predict", str(trained), str(trained / "data" / "val.subset.json")]
    )
    page = (tmp_path / "report.html").read_text()
    assert "29 of 36 images" in page and "7 of 36 images" in page


# used again, made again -------------------------------------------------------------------------------------------------


def test_an_unchanged_beton_keeps_its_hold_out_also_elsewhere(copied, tmp_path):
    recipe, said = with_words(copied, tmp_path / "run")
    assert "29 training images of 3 classes, 7 validation images, held out by class" in said
    first, said = sides(recipe), said_of(copied, tmp_path / "run")
    assert "unchanged" in said and "7 validation images" in said
    moved = tmp_path / "elsewhere" / "moved.beton"
    moved.parent.mkdir()
    manifest_path(copied).rename(manifest_path(moved))
    copied.rename(moved)
    recipe, said = with_words(moved, tmp_path / "run")
    assert sides(recipe) == first and "unchanged" in said


# what stays as it was ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "extra"),
    [("final_b16", []), ("photos", ["--data.hold_out_beton=false"]), ("photos", ["--data.val={val}"])],
    ids=["paper recipe", "switched off", "with data.val"],
)
def test_otherwise_a_beton_is_used_whole(reference, extra, album_beton, tiny, tmp_path):
    val = tmp_path / "val.beton"
    shutil.copy(album_beton, val)
    shutil.copy(manifest_path(album_beton), manifest_path(val))
    extra = [text.format(val=val) for text in extra]
    flags = [f"--data.train={album_beton}", f"--train.run_dir={tmp_path / 'run'}", *extra]
    recipe = load_recipe(reference, flags)
    said: list[str] = []
    assert prepare_data(recipe, said.append)[0] == recipe
    assert [text for text in said if "36 validation images are also training images" not in text] == []
    assert decide(recipe)[0].data.train_size == 36 and not (tmp_path / "run").exists()


# unusual sets -----------------------------------------------------------------------------------------------------------


def test_mistakes_are_one_line_and_exit_code_2(album, copied, tmp_path, refused):
    shutil.copytree(album / "coffee", tmp_path / "one" / "coffee")
    convert_folder(tmp_path / "one", tmp_path / "one.beton", WRITE)
    (tmp_path / "broken.beton").write_bytes(copied.read_bytes()[:-10])
    for name, message in (
        ("one", "has 1 class, but training needs at least 2"),
        ("broken", "not a complete .beton file"),
        ("none", "no such file or folder"),
    ):
        for command in ("train", "explain"):
            run = f"--train.run_dir={tmp_path / 'run'}"
            assert message in refused([command, "photos", f"--data.train={tmp_path / name}.beton", run])
