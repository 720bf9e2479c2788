"""Every program in examples/ runs with the real libraries, and the loss is that of the data that it was given."""

import csv
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
MODEL = ["--model", "vit_tiny_patch16_224", "--size", "32", "--batch-size", "8", "--epochs", "2"]


Run = Callable[..., list[str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a program of examples/ in a folder of its own; the lines that it prints."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_the_plain_loop_trains_and_resumes(tiny, run):
    arguments = ["plain_loop.py", tiny["data.train"], tiny["data.val"], *MODEL]
    lines = run(*arguments)
    assert [line.split(":")[0] for line in lines] == ["epoch 0", "epoch 1"]
    assert all(0 < float(re.search(r"loss ([\d.]+)", line)[1]) < 5 for line in lines)  # type: ignore[index]
    assert run(*arguments) == []  # all epochs are done
    (third,) = run(*arguments, "--epochs", "3")
    assert third.startswith("epoch 2: loss")


@pytest.mark.slow
def test_the_loop_with_timms_utilities_trains(tiny, run):
    lines = run("timm_loop.py", tiny["data.train"], tiny["data.val"], *MODEL)
    assert [line.split(":")[0] for line in lines] == ["epoch 0", "epoch 1"]
    assert all("EMA top-1" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--stock",), ("--augment", "3aug")])
def test_ffcvs_pipeline_runs_with_one_line_changed(options, tiny, run):
    lines = run("ffcv_loader.py", tiny["data.train"], "--size", "32", "--batch-size", "8", *options)
    assert [line.split(":")[0] for line in lines] == ["epoch 0", "epoch 1"]
    assert "images 3x32x32 torch.float" in lines[0]


@pytest.mark.slow
def test_the_lightning_module_trains(tiny, run):
    pytest.importorskip("lightning")
    last = run("lightning_module.py", tiny["data.train"], tiny["data.val"], *MODEL)[-1]
    assert "'loss':" in last and "'top1':" in last


@pytest.fixture
def pictures(tiny: dict[str, str], tmp_path: Path) -> Path:
    """A folder of photographs with a folder per class."""
    (tmp_path / "pics").symlink_to(Path(tiny["data.train"]).parent / "train")
    return tmp_path / "pics"


@pytest.mark.slow  # the call itself is tested in tests/photos/test_fit.py
def test_a_script_trains_on_photographs_in_one_call(tiny, pictures, run):
    options = [f"--model={tiny['model.arch']}", "--weights=random", "--image-size=32", "--epochs=2"]
    image = str(pictures / "coffee/01.jpg")
    top1, label, files = run("fit.py", "pics", *options, "--predict", image)[-3:]
    assert top1.startswith("top-1") and label.startswith(image)
    assert all((pictures.parent / file).is_file() for file in files.split())


@pytest.mark.slow
def test_the_notebook_runs(tiny, pictures):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "examples/quickstart.ipynb", as_version=4)
    settings = next(cell for cell in notebook.cells if cell.id == "settings")
    options = {"model": tiny["model.arch"], "weights": "random", "image_size": 32, "epochs": 2}
    settings.source += f"\noptions = {options}"
    NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(pictures.parent)}}).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "top-1" in said and "runs/quickstart.safetensors" in said and "pics/astronaut/00.jpg" in said


@pytest.mark.slow
def test_wrong_labels_and_near_duplicates_are_found_in_embeddings(tmp_path, run):
    pytest.importorskip("cleanlab")
    rng = np.random.default_rng(0)
    labels_N = np.repeat([0, 1, 2], 40)
    features_ND = 8 * np.eye(3, 16)[labels_N] + rng.normal(size=(120, 16))
    features_ND[70] = features_ND[50] + 1e-4  # of the same class
    labels_N[[3, 90]] = 1, 0
    for split, rows in {"train": slice(0, 60), "val": slice(60, 120)}.items():
        files = [f"{i}.jpg" for i in range(120)][rows]
        np.savez(tmp_path / f"{split}.npz", features=features_ND[rows].astype(np.float32), labels=labels_N[rows],
                 files=files, classes=["a", "b", "c"])  # fmt: skip
    run("check_labels.py", "train.npz", "val.npz")
    with (tmp_path / "suspects.csv").open() as file:
        table = [(row["issue"], row["image"], list(row.values())[-1]) for row in csv.DictReader(file)]
    assert {row for row in table if row[0] == "label"} == {
        ("label", "train: 3.jpg", "a"),
        ("label", "val: 90.jpg", "c"),
    }
    pairs = {("train: 50.jpg", "val: 70.jpg"), ("val: 70.jpg", "train: 50.jpg")}
    assert {row[1:] for row in table if row[0] == "near_duplicate"} == pairs
