"""Photographs in every accepted layout, converted once; what is wrong with them is one line."""

import csv
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.format import Beton
from beton_tools.read.manifest import Manifest
from fastft.augment.draw import draw_plan
from fastft.choose.automatic import resolve
from fastft.cli import main
from fastft.jobs.decided import decide
from fastft.jobs.run import run_recipe as train
from fastft.photos import prepare, state
from fastft.photos.prepare import prepare_data
from fastft.recipe import Recipe, load_recipe
from fastft.run.inputs import open_inputs
from fastft.run.json_files import write_document
from fastft.run.run_directory import lock_run
from tests.photos.conftest import CLASSES
from tests.train.runs import differing, end
from tests.train.test_distributed import launch

QUIET = Console(quiet=True)
Row = dict[str, str]


def with_words(photos: Path, run: Path, *options: str) -> tuple[Recipe, str]:
    """The prepared recipe, and the lines of the preparation."""
    said: list[str] = []
    paths = [f"--data.train={photos}", f"--train.run_dir={run}", "--model.weights=random"]  # otherwise they are fetched
    recipe, inputs = open_inputs(*prepare_data(load_recipe("photos", [*paths, *options]), said.append))
    return resolve(recipe, inputs.images), "\n".join(said)


def prepared(photos: Path, run: Path, *options: str) -> Recipe:
    return with_words(photos, run, *options)[0]


def said_of(photos: Path, run: Path, *options: str) -> str:
    return with_words(photos, run, *options)[1]


def split_of(run: Path) -> dict[str, str]:
    with (run / "data" / "split.csv").open(newline="") as file:
        return {row["file"]: row["split"] for row in csv.DictReader(file)}


def write_csv(path: Path, rows: Sequence[Row]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_of(album: Path) -> list[Row]:
    files = sorted(album.rglob("*.jpg"))
    return [{"image_path": str(file.relative_to(album)), "label": file.parent.name} for file in files]


def listed(album: Path) -> list[Row]:
    return [row | {"image_path": str(album / row["image_path"])} for row in rows_of(album)]


@pytest.fixture
def copied(album: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(album, tmp_path / "photos"))


# the same images in every layout ----------------------------------------------------------------------------------------


def layouts(album: Path, split: dict[str, str], folder: Path) -> dict[str, Path]:
    """The album as train/ and val/, as tables with paths, and as a table with the images."""
    found = {"folder": album, "split": folder / "split"}
    for name, side in split.items():
        target = folder / "split" / {"train": "Train", "val": "valid"}[side] / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(album / name, target)
    (folder / "split" / "test" / "unknown").mkdir(parents=True)
    paths = [{"file": str(album / name), "target": Path(name).parent.name} for name in split]
    shuffled = list(np.random.default_rng(0).permutation(paths))
    found["csv"] = write_csv(folder / "images.csv", shuffled)  # its own hold-out is the folder's
    sides = {str(album / name): side for name, side in split.items()}
    with_split = [row | {"is_valid": str(sides[row["file"]] == "val")} for row in shuffled]
    found["csv with split"] = write_csv(folder / "split.csv", with_split)
    found["parquet"] = folder / "paths.parquet"
    pq.write_table(pa.Table.from_pylist(shuffled), found["parquet"])
    embedded = [
        {"image": {"bytes": (album / name).read_bytes(), "path": name}, "label": Path(name).parent.name,
         "split": "train" if side == "train" else "validation"}
        for name, side in split.items()
    ]  # fmt: skip
    found["images in parquet"] = folder / "images.parquet"
    pq.write_table(pa.Table.from_pylist(sorted(embedded, key=lambda r: r["image"]["path"])), folder / "images.parquet")
    return found


def test_a_run_directory_among_the_class_folders_is_refused(album, tmp_path, monkeypatch, refused):
    """`--data.train=.`: the pictures of its report would be photographs of a class 'runs' in the next call."""
    shutil.copytree(album, tmp_path / "photos")
    monkeypatch.chdir(tmp_path / "photos")
    assert "in the photographs' folder" in refused(["train", "photos", "--data.train=."])
    with pytest.raises(UserError, match="in the photographs' folder"):
        prepared(album, Path("run"), "--data.val=.")
    assert sorted(path.name for path in Path().iterdir()) == sorted(CLASSES)
    assert prepared(Path(), tmp_path / "run").data.num_classes == len(CLASSES)
    assert main(["cost", "photos", "--data.train=.", "--gpu=v100"]) == 0  # writes nothing


@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["two", "all"])
def test_the_same_photographs_give_the_same_plan_and_result_in_every_layout(album, tower, tmp_path, few):
    prepared(album, tmp_path / "first")
    split = split_of(tmp_path / "first")
    assert sorted(split.values()) == ["train"] * 29 + ["val"] * 7  # a fifth of 36
    ends, results, plans = {}, {}, {}
    for name, photos in layouts(album, split, tmp_path).items():
        if few and name not in ("folder", "csv"):
            continue
        run = tmp_path / "runs" / name
        options = [f"--data.train={photos}", f"--train.run_dir={run}", *tower]
        recipe = load_recipe("photos", options)
        explained = decide(recipe)[0]
        plans[name] = (explained.data.train_size, explained.data.num_classes, explained.choices[1:])
        _, result = train(recipe, QUIET)
        ends[name], results[name] = end(run), result.evaluations
        state = json.loads((run / "checkpoints" / "step-00000012" / "state.json").read_text())
        assert state["classes"] == list(CLASSES)
    for name in ends:
        assert differing(ends["folder"], ends[name]) == [], name
        assert results[name] == results["folder"], name
        assert plans[name] == plans["folder"], name
    assert results["folder"][-1].raw.samples == 7


# converted once ---------------------------------------------------------------------------------------------------------


def test_photographs_are_converted_once_and_again_when_they_change(copied, tmp_path):
    recipe, said = with_words(copied, tmp_path / "run")
    assert recipe.data.num_classes == 3 and "29 training images of 3 classes, 7 validation images" in said
    first = Path(str(recipe.data.train)).stat().st_mtime_ns
    assert "unchanged" in said_of(copied, tmp_path / "run")
    assert Path(str(recipe.data.train)).stat().st_mtime_ns == first
    shutil.copy(copied / "coffee" / "00.jpg", copied / "coffee" / "new.jpg")
    again, said = with_words(copied, tmp_path / "run")
    assert "has changed since" in said and "was prepared, so" in said
    assert Beton.open(str(again.data.train)).num_samples + Beton.open(str(again.data.val)).num_samples == 37
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    (copied / "coffee" / "new.jpg").unlink()
    with pytest.raises(UserError, match=r"has changed since .* was trained. Use another --train\.run_dir"):
        prepared(copied, tmp_path / "run")


def test_photographs_that_change_while_they_are_prepared_are_prepared_again(copied, tmp_path, monkeypatch):
    split_photos = prepare.split_photos

    def change_and_split(*arguments: Any, **options: Any) -> Any:
        """After the listing, before the conversion."""
        (copied / "coffee" / "03.jpg").unlink()
        return split_photos(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(prepare, "split_photos", change_and_split)
        prepared(copied, tmp_path / "run")
    again, said = with_words(copied, tmp_path / "run")
    fresh = prepared(copied, tmp_path / "fresh")
    assert "has changed since" in said
    assert Path(str(again.data.train)).read_bytes() == Path(str(fresh.data.train)).read_bytes()


def test_validation_images_elsewhere_and_held_out_ones_are_told_apart(copied, tower, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(copied, own)
    for first, second in (((), (f"--data.val={own}",)), ((f"--data.val={own}",), ())):
        run = tmp_path / f"run{len(first)}"
        prepared(copied, run, *first)
        assert "unchanged" not in said_of(copied, run, *second)
        recipe = prepared(copied, run, *second)
        assert Beton.open(str(recipe.data.train)).num_samples == (36 if second else 29)


def test_a_converted_file_that_is_lost_is_made_again(copied, tmp_path):
    recipe = prepared(copied, tmp_path / "run")
    before = Path(str(recipe.data.train)).read_bytes()
    Path(str(recipe.data.train)).unlink()
    assert "train.beton is missing, so" in said_of(copied, tmp_path / "run")
    assert Path(str(recipe.data.train)).read_bytes() == before


@pytest.mark.parametrize("content", ["[]", '{"inputs": {"data": "x"}, "files": 5}', '{"inputs": 1}'])
def test_a_damaged_record_is_as_none(copied, tmp_path, content):
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "data" / "prepared.json").write_text(content)
    assert Beton.open(str(prepared(copied, tmp_path / "run").data.train)).num_samples == 29


def test_a_record_that_is_no_file_is_one_line_and_nothing_is_deleted(copied, tmp_path):
    file = Path(str(prepared(copied, tmp_path / "run").data.train))
    (tmp_path / "run/data/prepared.json").unlink()
    os.mkfifo(tmp_path / "run/data/prepared.json")
    with pytest.raises(UserError, match=r"prepared\.json"):
        prepared(copied, tmp_path / "run")
    assert file.exists()


def test_photographs_that_another_command_prepared_and_trained_on_meanwhile_stay(copied, tmp_path, monkeypatch):
    folder = tmp_path / "run/data"

    def other_command() -> None:
        (folder.parent / "checkpoints/step-00000005").mkdir(parents=True)
        folder.mkdir(parents=True)
        others = state.Prepared(inputs=state.MadeFrom("others", "hash"), made=state.Made(summary=[], warnings=[]))
        write_document(folder / state.PREPARED, others)

    with pytest.raises(UserError, match=r"was trained on others\. Use another"):
        state.prepare_once(folder, state.MadeFrom("mine", "mine"), print, other_command, dict)


def test_a_larger_image_size_is_the_reason_given(copied, tmp_path):
    prepared(copied, tmp_path / "run", "--model.image_size=224")
    said = said_of(copied, tmp_path / "run", "--model.image_size=384")
    assert said.startswith("model.image_size has changed since")
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(UserError, match=r"model\.image_size has changed since .* was trained. Use another"):
        prepared(copied, tmp_path / "run", "--model.image_size=224")
    with pytest.raises(UserError, match=r"data\.background has changed since .* was trained. Use another"):
        prepared(copied, tmp_path / "run", "--model.image_size=384", "--data.background=black")


def test_photographs_that_are_refused_leave_nothing(copied, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError, match="num_classes"):
        prepared(copied, run, "--data.num_classes=7")
    assert not run.exists()
    prepared(copied, run)
    with pytest.raises(UserError, match="num_classes"):
        prepared(copied, run, "--data.num_classes=7")
    assert (run / "data" / "train.beton").exists()


def test_the_other_processes_keep_their_own_paths_and_workers(album, tmp_path):
    options = [f"--data.train={album}", f"--train.run_dir={tmp_path / 'run'}", "--model.weights=random"]
    first, images = prepare_data(load_recipe("photos", options), lambda text: None)
    other = load_recipe("photos", [*options, "--data.workers=3"])
    world = SimpleNamespace(size=2, any=bool, in_main=lambda work: (first.data, images))
    found, counted = prepare_data(other, pytest.fail, cast(Any, world))
    assert found == first.with_option("data.workers", 3) and counted == images


@pytest.mark.slow
def test_two_processes_share_one_conversion_and_its_error(album, tower, tmp_path):
    options = ["train", "photos", f"--data.train={album}", f"--train.run_dir={tmp_path / 'run'}", *tower]
    out, said = launch(*options, "--schedule.stop_epoch=1").communicate(timeout=250)
    assert out.count("29 training images of 3 classes, 7 validation images") == 1, said
    assert len(split_of(tmp_path / "run")) == 36 and (tmp_path / "run" / "result.json").exists()
    process = launch(*options, "--data.num_classes=5")
    assert "has 3 classes, but --data.num_classes is 5" in process.communicate(timeout=250)[1]
    assert process.returncode == 2


def test_another_process_in_the_same_folder_is_one_line(album, tmp_path, refused):
    flags = [f"--data.train={album}", f"--train.run_dir={tmp_path / 'run'}", "--model.weights=random"]
    with lock_run(tmp_path / "run"):
        assert "is in use by another process" in refused(["train", "photos", *flags])
    assert not list((tmp_path / "run").rglob("*.beton*"))


def test_images_that_lose_values_and_classes_that_cannot_be_read_are_named(copied, tmp_path):
    Image.fromarray(np.full((40, 40), 5000, np.uint16)).save(copied / "coffee" / "deep.png")
    Image.fromarray(np.full((40, 40), 0.5, np.float32)).save(copied / "coffee" / "fractions.tif")
    Image.fromarray(np.full((40, 600), 5000, np.int32)).save(copied / "coffee" / "large.tif")
    for image in (copied / "chelsea").glob("*.jpg"):
        image.write_bytes(b"not an image")
    recipe, text = with_words(copied, tmp_path / "run")
    counts = re.findall("([0-9]) (?:train|val) images? with 16 or 32 bits per value", text)
    assert sum(map(int, counts)) == 3
    assert "no training image can be read in chelsea" in text
    assert re.search("train images left out because unreadable: chelsea/", text)
    stored = Beton.open(str(recipe.data.train)).num_samples
    assert f"{stored} training images of 3 classes" in text


def test_explain_gives_the_warnings_of_a_training(copied, tmp_path, capsys):
    table = write_csv(tmp_path / "t.csv", listed(copied))
    (copied / "coffee" / "00.jpg").unlink()
    assert main(["explain", "photos", f"--data.train={table}", "--json"]) == 0
    assert "1 of 36 files in the table do not exist" in capsys.readouterr().out
    for val in ("nowhere", f"{copied}/chelsea/00.jpg"):
        assert main(["explain", "photos", f"--data.train={copied}", f"--data.val={val}"]) == 2


def test_semicolons_in_class_names_are_told_and_the_option_decides(album, tmp_path, capsys):
    rows = listed(album)
    for row in rows[:2]:
        row["label"] = "drinks;" + row["label"]
    table = write_csv(tmp_path / "t.csv", rows)
    told = "2 of 36 label cells have a semicolon, such as 'drinks;"
    recipe = decide(load_recipe("photos", [f"--data.train={table}"]))[0]
    assert recipe.data.multi_label and told in next(c.reason for c in recipe.choices if c.option == "data.multi_label")
    recipe = decide(load_recipe("photos", [f"--data.train={table}", "--data.multi_label=false"]))[0]
    assert not recipe.data.multi_label and recipe.data.num_classes == len(CLASSES) + 1
    convert = ["convert", "folder", "--data", str(table), "--workers=0", "--out"]
    assert main([*convert, str(tmp_path / "several.beton")]) == 0
    assert told in capsys.readouterr().out
    assert main([*convert, str(tmp_path / "single.beton"), "--single-label"]) == 0
    assert told not in capsys.readouterr().out
    assert BetonSet.open(tmp_path / "single.beton").label_sets is None


def test_a_wrong_path_is_no_plan_of_imagenets_size(copied, tmp_path, refused, capsys):
    for command in (["explain", "photos"], ["cost", "photos", "--gpu", "v100"]):
        for path in ("mistyped", "none*.csv"):
            said = refused([*command, f"--data.train={tmp_path / path}"])
            assert f"{path}: no such file or folder. Its images decide" in said
    pq.write_table(pa.Table.from_pylist(listed(copied)), tmp_path / "part-0.parquet")
    assert main(["explain", "photos", f"--data.train={tmp_path}/part-*.parquet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["data"]["train_size"] == 29


def test_another_folder_for_the_same_run_is_named(copied, tower, tmp_path):
    other = Path(shutil.copytree(copied, tmp_path / "more"))
    (other / "coffee" / "00.jpg").unlink()
    run = tmp_path / "run"
    prepared(copied, run)
    assert said_of(other, run).startswith(f"{run / 'data'} was prepared from {copied}, so {other} is prepared\n")
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{run} was trained on {other}. Use another --train\.run_dir"):
        prepared(copied, run)


def test_photographs_beside_a_beton_are_one_line(tiny, album, tmp_path, refused):
    for images, val in ((tiny["data.train"], album), (album, tiny["data.val"])):
        flags = [f"--data.train={images}", f"--data.val={val}", f"--train.run_dir={tmp_path / 'run'}"]
        for command in ("train", "explain"):
            if (command, images) != ("explain", tiny["data.train"]):  # which looks at training images only
                said = refused([command, "photos", *flags])
                assert "or both as .beton, which fastft convert folder writes" in said
    assert not (tmp_path / "run").exists()


def test_a_preview_of_photographs_draws_what_training_will_see(album, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [f"--data.train={album}", "--model.image_size=32"]
    plans = []
    monkeypatch.setattr("fastft.report.preview.draw_plan", lambda *a, **k: plans.append(draw_plan(*a, **k)) or plans[0])
    assert main(["preview", "photos", *options, "--out", "grid.png", "--count", "30"]) == 0
    areas = plans[0]["crop"][:, 2:].prod(1) / 64**2
    assert len(areas) == 29 and areas.min() > 0.45
    assert (tmp_path / "runs" / "photos" / "data" / "train.beton").exists()


# groups, duplicates, odd sets -------------------------------------------------------------------------------------------


def test_groups_stay_on_one_side(album, tmp_path):
    rows = [row | {"group": f"p{i // 3}"} for i, row in enumerate(listed(album))]
    prepared(write_csv(tmp_path / "grouped.csv", rows), tmp_path / "run")
    split = split_of(tmp_path / "run")
    sides = {(row["group"], split[os.path.relpath(row["image_path"], tmp_path)]) for row in rows}
    assert len(sides) == 12 and "val" in split.values()


def test_warnings_name_and_count_what_is_unusual(copied, tmp_path):
    (copied / "empty").mkdir()
    (copied / "single").mkdir()
    shutil.copy(copied / "coffee" / "01.jpg", copied / "single" / "a.jpg")
    for content in ("", "<html>404</html>"):  # equal, but no image
        for name in ("coffee", "chelsea"):
            (copied / name / f"{len(content)}.jpg").write_text(content)
    recipe, text = with_words(copied, tmp_path / "run")
    assert recipe.data.num_classes == 4  # an empty folder shifts no label
    assert "1 class without images is left out: empty" in text
    assert "1 class has fewer than 2 training images: single" in text
    assert "1 image appears in several classes" in text
    manifest = Manifest.of_beton(str(recipe.data.train))
    assert manifest is not None and manifest.classes == [*CLASSES, "single"]


def test_duplicates_across_given_splits_are_a_warning(album, tmp_path):
    shutil.copytree(album, tmp_path / "set" / "train")
    (tmp_path / "set" / "val" / "coffee").mkdir(parents=True)
    shutil.copy(album / "coffee" / "03.jpg", tmp_path / "set" / "val" / "coffee" / "copy.jpg")
    said = said_of(tmp_path / "set", tmp_path / "run")
    assert re.search("1 validation image is also a training image.*copy.jpg", said)


def test_groups_on_both_given_sides_and_repeated_rows_are_warnings(album, tmp_path):
    rows = [row | {"group": f"g{i // 4}", "split": "train" if i % 4 else "val"} for i, row in enumerate(listed(album))]
    text = said_of(write_csv(tmp_path / "t.csv", [*rows, rows[1]]), tmp_path / "run")
    used = "image from 'image_path', label from 'label', group from 'group', split from 'split'"
    assert f"{tmp_path / 't.csv'}: columns: {used}" in text
    assert (
        "9 groups have both training and validation images, so accuracy will be too high: g0, g1, g2, ... 6 mo" in text
    )
    assert "1 file is listed several times, and every row counts as an image: " in text


def test_measurements_are_refused_and_classes_that_are_numbers_are_not(album, tmp_path):
    rows = listed(album)
    for name, labels in (
        ("weights", [f"{i / 7:.3f}" for i in range(36)]),
        ("classes", [f"{i % 3}.5" for i in range(36)]),
    ):
        write_csv(tmp_path / f"{name}.csv", [row | {"label": label} for row, label in zip(rows, labels, strict=True)])
    assert prepared(tmp_path / "classes.csv", tmp_path / "run").data.num_classes == 3
    with pytest.raises(
        UserError, match=r"look like measurements, 36 numbers for 36 images\. Regression is not supported"
    ):
        prepared(tmp_path / "weights.csv", tmp_path / "run2")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.weights=nowhere.pt", "nowhere.pt"),
        ("--model.weights=opena", "Did you mean 'openai'"),
        ("--model.image_size=30", "image size 30 is not a multiple"),
        ("--model.arch=ViT-C-16", "ViT-C-16"),
        ("--model.trainable_layers=99", "but the tower has 12 blocks"),
        ("--model.head=nowhere.safetensors", "nowhere.safetensors"),
    ],
)
def test_wrong_options_of_the_model_are_refused_before_the_conversion(option, message, album, tmp_path):
    with pytest.raises(UserError, match=message):
        prepared(album, tmp_path / "run", option)
    assert not (tmp_path / "run").exists()


def test_missing_files_of_a_table_are_counted_and_named(album, tmp_path):
    rows = listed(album)
    rows[5]["image_path"] = str(album / "gone.jpg")
    said = said_of(write_csv(tmp_path / "t.csv", rows), tmp_path / "run")
    assert re.search("1 of 36 files in the table do not exist.*gone.jpg", said)
    assert sorted(split_of(tmp_path / "run").values()).count("missing") == 1


def make_unknown_class(folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "set" / "train")
    shutil.copytree(folder / "coffee", folder.parent / "set" / "val" / "tea")


def table(content: str) -> Callable[[Path], object]:
    return lambda folder: (folder.parent / "x.csv").write_text(content)


def make_missing(folder: Path) -> None:
    write_csv(folder.parent / "set.csv", [{"file": f"nowhere/{i}.jpg", "label": str(i)} for i in range(3)])


@pytest.mark.parametrize(
    ("make", "photos", "message"),
    [
        (lambda folder: None, "nowhere", "no such file or folder. Give a folder with one folder per class"),
        (lambda folder: None, "s3://bucket/a.tar", "training reads local files. Convert the data first"),
        (lambda folder: None, "photos/coffee", "images have no labels"),
        (lambda folder: None, "photos/coffee/00.jpg", "not a .beton file. Give a folder with one folder per class"),
        (lambda folder: [shutil.rmtree(folder / n) for n in CLASSES[1:]], "photos", "images of only one class"),
        (make_unknown_class, "set", r"validation images of 1 class without training images \(tea: tea/00.jpg\)"),
        (make_missing, "set.csv", r"/set\.csv: none of the 3 files that the table lists exists"),
        (table("file,score\na.jpg,1\n"), "x.csv", "no label column among file, score. Name it one of label"),
        (table("file,label,split\na.jpg,1,later\n"), "x.csv", "row 2: split is 'later'. Write train, val or test"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(make, photos, message, copied, tmp_path, refused):
    make(copied)
    where = photos if "://" in photos else tmp_path / photos
    said = refused(["train", "photos", f"--data.train={where}", f"--train.run_dir={tmp_path / 'run'}"])
    assert re.search(message, said)


@pytest.mark.parametrize("option", ["train", "val"])
def test_a_wrong_path_is_noticed_before_weights_are_fetched(option, album, tmp_path, monkeypatch, refused):
    monkeypatch.setattr("fastft.model.recipe_model.load_tower_weights", lambda *_: pytest.fail("weights were fetched"))
    paths = {"train": str(album), "val": str(album)} | {option: str(tmp_path / "mistyped.beton")}
    options = [f"--data.{key}={path}" for key, path in paths.items()]
    said = refused(["train", "photos", f"--train.run_dir={tmp_path / 'run'}", *options])
    assert "mistyped.beton: no such file" in said
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_heic_images_that_cannot_be_read_are_named_before_the_split(album, tmp_path, monkeypatch):
    """Otherwise all held-out images may be such, and "none of the 2 images could be stored" is all that is said."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    shutil.copytree(album, tmp_path / "photos")
    for name in CLASSES:
        for file in sorted((tmp_path / "photos" / name).iterdir())[2:]:
            file.with_suffix(".HEIC").write_bytes(b"\0\0\0\x24ftypheic" + file.name.encode())
            file.unlink()
    said = said_of(tmp_path / "photos", tmp_path / "run")
    assert "30 of 36 images are HEIC and left out: HEIC files need pillow-heif. Run: pip install pillow-heif" in said
    assert all(name.endswith(".jpg") for name in split_of(tmp_path / "run")) and len(split_of(tmp_path / "run")) == 6
    for file in (tmp_path / "photos").rglob("*.jpg"):
        file.unlink()
    with pytest.raises(UserError, match=r"30 of 30 images are HEIC and left out: .* pip install"):
        prepared(tmp_path / "photos", tmp_path / "other")
