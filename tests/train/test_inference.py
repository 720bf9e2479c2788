"""A checkpoint is all that evaluation and prediction need."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from fastft.train.checkpoint import find_checkpoint, read_checkpoint
from fastft.train.inference import evaluate_checkpoint, predict_files, write_predictions
from tests.train.runs import run


@pytest.fixture
def trained(tiny, tmp_path: Path) -> Path:
    """A run whose architecture file is gone since."""
    arch = tmp_path / "arch.json"
    arch.write_bytes(Path(tiny["model.arch"]).read_bytes())
    run(
        tiny | {"model.arch": str(arch), "schedule.epochs": "1", "schedule.warmup_epochs": "0"},
        tmp_path / "run",
    )
    arch.unlink()
    return tmp_path / "run"


def test_a_moved_architecture_file_does_no_harm(trained: Path, tiny) -> None:
    evaluation = read_checkpoint(find_checkpoint(trained)).state["evaluation"]
    scores = evaluate_checkpoint(trained, None, "cpu")
    assert scores["samples"] == 20
    assert scores["top1"] == evaluation["ema"]["top1"]
    assert scores["loss"] == pytest.approx(evaluation["ema"]["loss"], rel=1e-5)


def test_every_file_gets_its_classes_or_says_why_not(trained: Path, photographs, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.fromarray(photographs["coffee"]).save(folder / "a.jpg")
    (folder / "b.jpg").write_bytes(b"no image at all")
    Image.fromarray(photographs["coffee"]).convert("L").save(folder / "c.png")
    found = list(predict_files(trained, [folder], topk=5, device="cpu"))
    assert [p.path.name for p in found] == ["a.jpg", "b.jpg", "c.png"]
    assert found[1].error and not found[1].classes
    for p in (found[0], found[2]):
        assert sorted(p.classes) == ["astronaut", "coffee"]
        assert sum(p.probabilities) == pytest.approx(1, abs=1e-5)

    table = tmp_path / "out.csv"
    write_predictions(iter([replace(found[0], path=Path("a, b.jpg")), found[1]]), table)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["file"], r["rank"]) for r in rows] == [
        ("a, b.jpg", "1"),
        ("a, b.jpg", "2"),
        (str(found[1].path), ""),
    ]
