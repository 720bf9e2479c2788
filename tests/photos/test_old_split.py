"""Photographs change between two runs: the second keeps the first one's tower, head rows and split."""

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastft
from fastft import TrainedRun
from fastft.cli import main
from fastft.evaluate.trained import load_trained
from fastft.evaluate.weight_average import read_start
from fastft.photos.holdout import hold_out
from fastft.photos.old_split import NEW, TRAIN, VAL, hold_out_new

CPU = torch.device("cpu")


def split_of(run: Path) -> dict[str, tuple[str, str, str]]:
    """File -> (class, split, content)."""
    with (run / "data/split.csv").open(newline="") as file:
        return {row["file"]: (row["class"], row["split"], row["content"]) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def given(tiny: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "options": {"train.amp": "fp32", "train.log_every": 1}, "model": tiny["model.arch"], "weights": "random",
        "image_size": 32, "epochs": 2, "batch_size": 8, "device": "cpu", "quiet": True, "augment": {"policy": "none"},
    }  # fmt: skip


@pytest.fixture(scope="module")
def first(album: Path, given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return fastft.fit("photos", data=album, out=tmp_path_factory.mktemp("runs") / "first", **given)


@pytest.fixture(scope="module")
def changed(album: Path, first: TrainedRun, photographs: dict[str, np.ndarray], tmp_path_factory) -> Path:
    """The photographs with a new class, two corrected labels, a new and a deleted image."""
    folder = tmp_path_factory.mktemp("changed") / "pics"
    shutil.copytree(album, folder)
    names = {
        side: [n for n, (c, s, _) in split_of(first.folder).items() if (c, s) == ("chelsea", side)]
        for side in ("train", "val")
    }
    for side in ("train", "val"):
        name = names[side][0]
        (folder / name).rename(folder / "coffee" / f"was_{Path(name).name}")  # another class and another name
    (folder / names["train"][1]).unlink()
    (folder / "rocket").mkdir()
    rocket = photographs["rocket"]
    for i in range(12):
        Image.fromarray(rocket[8 * i : 8 * i + 64, 8 * i : 8 * i + 64]).save(folder / "rocket" / f"{i:02}.png")
    Image.fromarray(photographs["chelsea"][-64:, -64:]).save(folder / "chelsea" / "new.png")
    return folder


@pytest.fixture(scope="module")
def second(first: TrainedRun, changed: Path, given: dict[str, Any], tmp_path_factory) -> TrainedRun:
    """A run of the changed photographs from the first run, at a learning rate of 0."""
    still = {"optim": {"lr": 0}, "schedule": {"min_lr": 0}, "ema": {"decay": 0, "horizon": None}}
    options = {k: v for k, v in given.items() if k not in ("model", "image_size", "weights")} | still
    return fastft.fit("photos", data=changed, out=first.folder.parent / "second", weights=first.folder, **options)


def test_every_image_of_the_first_run_stays_on_its_side_and_new_ones_are_split(first, second):
    before = {content: side for _, side, content in split_of(first.folder).values()}
    after = split_of(second.folder)
    moved = {content: (before[content], side) for _, side, content in after.values() if content in before}
    assert len(moved) == len(before) - 1 and all(then == now for then, now in moved.values())
    corrected = [side for name, (kind, side, _) in after.items() if "was_" in name and kind == "coffee"]
    assert sorted(corrected) == ["train", "val"]
    rockets = [side for kind, side, _ in after.values() if kind == "rocket"]
    assert 0 < rockets.count("val") < 6


def test_the_second_run_has_the_tower_and_the_rows_of_the_old_classes(first, second):
    old, new = load_trained(first.folder, CPU), load_trained(second.folder, CPU)
    tower, same = old.model.visual.state_dict(), new.model.visual.state_dict()
    assert all(torch.equal(tower[name], same[name]) for name in tower)
    assert new.classes == sorted([*old.classes, "rocket"])
    rows = [new.classes.index(name) for name in old.classes]
    torch.testing.assert_close(new.model.head.weight[rows], old.model.head.weight)
    torch.testing.assert_close(new.model.head.weight[new.classes.index("rocket")], old.model.head.weight.mean(0))
    assert new.recipe.model.image_size == 32 and new.recipe.model.head_init == "weights"
    start = read_start(new)  # for fastft average
    assert all(torch.equal(start[name], value) for name, value in new.model.state_dict().items())


def test_the_log_counts_what_became_of_the_images(first, second, changed, given, capsys):
    command = [
        "train",
        "photos",
        f"--data={changed}",
        f"--weights={first.folder}",
        f"--out={second.folder.parent / 'third'}",
    ]
    assert (
        main([*command, "--epochs=1", "--batch-size=8", "--train.amp=fp32", "--device=cpu", "--augment.policy=none"])
        == 0
    )
    said = " ".join(capsys.readouterr().out.split())
    count = len(split_of(first.folder)) - 1
    assert re.search(
        rf"{count} images keep the side \(training or validation\) that they had in \S+first, "
        r"13 are new, \d+ of these held out, 1 image",
        said,
    )
    assert f"as in {first.folder}" in (second.folder.parent / "third/choices.json").read_text()


def test_classes_that_are_all_new_start_from_a_probe(first, photographs, given, tmp_path):
    for name in ("rocket", "china"):
        (tmp_path / "other" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(photographs[name][8 * i : 8 * i + 64, :64]).save(tmp_path / "other" / name / f"{i}.png")
    options = {k: v for k, v in given.items() if k not in ("model", "image_size", "weights")}
    run = fastft.fit("photos", data=tmp_path / "other", out=tmp_path / "run", weights=first.folder, **options)
    assert fastft.load_recipe(run.folder / "recipe.yaml").model.head_init == "probe" and run.result.baseline


def test_new_images_join_the_old_ones_of_their_unit():
    """Training images draw a whole unit to their side; images of no old unit are split by class."""
    sides = np.array([TRAIN, NEW, VAL, NEW, TRAIN, VAL, NEW, *[NEW] * 20])
    units = np.array([0, 0, 1, 1, 2, 2, 2, *range(3, 23)])
    labels = np.array([0, 0, 0, 0, 0, 0, 0, *[0] * 10, *[1] * 10])
    held = hold_out_new(sides, labels, units, hold_out)
    assert held[:7].tolist() == [False, False, True, True, False, True, False]
    assert held[7:17].sum() == held[17:].sum() == 2


def test_a_split_that_is_not_fastfts_is_one_line(first, album, tmp_path, refused):
    run = tmp_path / "old"
    shutil.copytree(first.folder, run)
    (run / "data/split.csv").write_text("file,split\na.jpg,val\n")
    command = ["train", "photos", f"--data={album}", f"--weights={run}", f"--out={tmp_path / 'new'}"]
    assert "split.csv has no column 'content'. Give other --model.weights" in refused(command)
    assert not (tmp_path / "new").exists()
