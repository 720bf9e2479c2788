"""Robustness sets: only the classes of a file are ranked, and several files make one table."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.cli import main
from fastft.evaluate.evaluation import evaluate_checkpoint, predict_file

PRESENT = ("chelsea", "rocket", "flower")


@pytest.fixture(scope="module")
def subset(
    run_of_random_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
    photographs: dict[str, np.ndarray],
) -> Path:
    """Images of three of the six classes, with the labels of all six, as ImageNet-R is converted."""
    folder = tmp_path_factory.mktemp("subset")
    for name in PRESENT:
        (folder / "images" / name).mkdir(parents=True)
        for k in range(4):
            crop = photographs[name][25 * k : 25 * k + 90, 35 * k : 35 * k + 90]
            Image.fromarray(crop).save(folder / "images" / name / f"{k}.png")
    convert_folder(
        folder / "images",
        folder / "r.beton",
        WriteOptions(workers=0),
        classes_of=run_of_random_model / "val.beton",
    )
    return folder / "r.beton"


def test_only_the_classes_with_images_are_ranked(run_of_random_model: Path, subset: Path) -> None:
    trained, found = predict_file(run_of_random_model, subset, "cpu")
    present = [trained.classes.index(name) for name in sorted(PRESENT, key=trained.classes.index)]
    among_all, among_present = (
        found.logits_NK.argmax(1),
        np.take(present, found.logits_NK[:, present].argmax(1)),
    )
    assert (among_all != among_present).any()  # otherwise this would show nothing
    for only, predicted, classes in ((False, among_all, 6), (True, among_present, 3)):
        scores = evaluate_checkpoint(run_of_random_model, subset, "cpu", only_present_classes=only)
        assert scores["top1"] == pytest.approx(100 * (predicted == found.labels_N).mean())
        assert scores["ranked_classes"] == classes
        assert ("top5" in scores) == (classes > 5)
    logits_NP = found.logits_NK[:, present] - found.logits_NK[:, present].max(1, keepdims=True)
    truth_N = logits_NP[np.arange(12), [present.index(label) for label in found.labels_N]]
    loss = (np.log(np.exp(logits_NP).sum(1)) - truth_N).mean()
    assert scores["loss"] == pytest.approx(loss, rel=1e-5)
    assert np.isfinite([scores["ece"], scores["ece_scaled"], scores["temperature"]]).all()


def test_several_files_make_one_table(
    run_of_random_model: Path,
    subset: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    files = [run_of_random_model / "val.beton", subset]
    command = [
        "eval",
        str(run_of_random_model),
        *(f"--data={file}" for file in files),
        "--only-present-classes",
    ]
    assert main([*command, "--device=cpu"]) == 0
    shown = capsys.readouterr().out
    for file, images, classes in (("val", "36", "6"), ("r", "12", "3")):
        row = next(line for line in shown.splitlines() if f" {file} " in line)
        assert row.split()[1:3] == [images, classes]
    assert main([*command, "--device=cpu", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [scores["data"] for scores in listed] == [str(file) for file in files]
    assert [scores["ranked_classes"] for scores in listed] == [6, 3]
    alone = evaluate_checkpoint(run_of_random_model, subset, "cpu", only_present_classes=True)
    assert listed[1] == json.loads(json.dumps(alone))
    assert main([*command, "--csv=a.csv"]) == 2
    assert "--csv is a table of one file" in capsys.readouterr().err
