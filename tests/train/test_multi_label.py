"""Several labels per image, from a table to predictions: what a run reports, resumes, predicts, exports and refuses."""

import csv
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from sklearn.metrics import average_precision_score, f1_score
from torch.nn import functional as F

from beton_tools.base.errors import UserError
from beton_tools.inspect.extract import extract
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.format import Beton
from beton_tools.read.manifest import Manifest
from fastft.augment.draw import eval_plan
from fastft.augment.mix import Mixer, smoothed_targets
from fastft.cli import main
from fastft.data.loader import EvalLoader, TrainLoader
from fastft.data.stage import Output, PackedStage
from fastft.evaluate.evaluation import evaluate_checkpoint
from fastft.evaluate.predictor import Predictor
from fastft.evaluate.trained import load_trained
from fastft.export import FORMATS, export_checkpoint
from fastft.jobs.run import run_recipe
from fastft.photos.prepare import prepare_data
from fastft.recipe import load_recipe
from fastft.report.run_report import write_run_page
from fastft.run.checkpoint import list_checkpoints, read_checkpoint
from fastft.train.reporting import Reporter
from tests.train.runs import QUIET, differing, end, losses
from tests.train.test_distributed import close, launch, said_by

NAMES = ("astronaut", "chelsea", "coffee")
KEPT = ("model.arch", "model.weights", "model.image_size", "train.amp", "train.device", "train.log_every")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, np.ndarray]) -> Path:
    """80 images of up to three strips of 20 columns, each a crop of a photograph, or grey."""
    folder = tmp_path_factory.mktemp("strips")
    rng, rows = np.random.default_rng(0), ["image,labels"]
    for i in range(80):
        pixels, labels = np.full((60, 60, 3), 128, np.uint8), []
        for place, name in enumerate(NAMES):
            if rng.random() < 0.5:
                y, x = (int(rng.integers(0, n - 60)) for n in photographs[name].shape[:2])
                pixels[:, 20 * place : 20 * place + 20] = photographs[name][y : y + 60, x : x + 20]
                labels.append(name)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{';'.join(labels)}")
    (folder / "strips.csv").write_text("\n".join(rows) + "\n")
    return folder / "strips.csv"


def options(tiny: dict[str, str], table: Path, folder: Path, **changes: str) -> list[str]:
    values = {key: tiny[key] for key in KEPT} | {"data.train": str(table), "train.run_dir": str(folder)}
    values |= {"optim.batch_size": "16", "schedule.epochs": "4", "train.checkpoint_steps": "2", "optim.lr": "1e-3"}
    values |= {"augment.mixup": "0.8", "augment.cutmix": "1", "model.drop_path": "0.2", "augment.policy": "none"}
    return [
        f"--{key}={value}" for key, value in (values | {k.replace("__", "."): v for k, v in changes.items()}).items()
    ]


@pytest.fixture(scope="module")
def strips(tiny, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "strips"
    with pytest.MonkeyPatch.context() as patch:  # so short a run would keep its probe
        patch.setattr("fastft.run.chosen_weights.FEW_STEPS", 0)
        run_recipe(load_recipe("photos", options(tiny, table, folder)), QUIET)
    return folder


def test_figures_of_a_run_equal_scikit_learns(strips: Path, tmp_path: Path) -> None:
    found = evaluate_checkpoint(strips, None, "cpu", csv=tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    labels, predicted = (
        np.array([[n in row[c].split(";") for n in NAMES] for row in rows]) for c in ("labels", "predicted")
    )
    probabilities = np.array([[float(row[name]) for name in NAMES] for row in rows])
    assert found.map == pytest.approx(100 * average_precision_score(labels, probabilities, average="macro"), abs=0.01)
    assert found.macro_f1 == pytest.approx(100 * f1_score(labels, predicted, average="macro"))
    result = json.loads((strips / "result.json").read_text())
    weights = result["weights"]
    assert weights["map"] == pytest.approx(found.map) and result["last"]["best_by"] == "map"
    thresholds = result["last"][weights["kind"]]["thresholds"]
    np.testing.assert_array_equal(predicted, probabilities >= thresholds)
    assert [c.threshold for c in found.classes] == pytest.approx([100 * t for t in thresholds])
    held = BetonSet.open(strips / "data/val.beton")
    np.testing.assert_array_equal(held.labels, labels)
    assert found.top1 is None and "raw_thresholds" not in (strips / "metrics.jsonl").read_text()


def test_predictions_are_the_labels_above_their_thresholds(strips: Path, table: Path, capsys) -> None:
    images = [table.parent / f"{i}.png" for i in range(20)]
    predictor, trained = Predictor(strips, "cpu"), load_trained(strips, torch.device("cpu"))
    every = list(predictor.predict(images))
    assert {len(p.classes) for p in every} != {len(NAMES)}
    thresholds = dict(zip(NAMES, trained.thresholds, strict=True))
    assert all(p >= thresholds[name] for one in every for name, p in zip(one.classes, one.probabilities, strict=True))
    assert max(len(p.classes) for p in predictor.predict(images, topk=1)) == 1
    predictor.trained = type(trained)(**{**vars(trained), "thresholds": [1.1] * 3})
    assert next(predictor.predict(images[:1])).classes == []
    predictor.trained = type(trained)(**{**vars(trained), "thresholds": [0.0] * 3})
    likeliest, second, _ = next(predictor.predict(images[:1])).classes
    too_high = [1.1 if name == likeliest else 0.0 for name in NAMES]
    predictor.trained = type(trained)(**{**vars(trained), "thresholds": too_high})
    assert next(predictor.predict(images[:1], topk=1)).classes == [second]
    assert main(["eval", str(strips), "--device", "cpu"]) == 0
    assert "mAP" in (said := capsys.readouterr().out) and "threshold" in said


def test_a_run_resumes_bit_for_bit_and_the_page_shows_it(
    tiny, table: Path, strips: Path, tmp_path: Path, monkeypatch
) -> None:
    flags = options(tiny, table, tmp_path / "run")
    interval = Reporter.interval
    with monkeypatch.context() as patched:
        patched.setattr(Reporter, "interval", lambda r, e, step, lr: 1 / 0 if step == 7 else interval(r, e, step, lr))
        with pytest.raises(ZeroDivisionError):
            run_recipe(load_recipe("photos", flags), QUIET)
    run_recipe(load_recipe("photos", flags), QUIET)
    assert differing(end(strips), end(tmp_path / "run")) == []
    page = write_run_page(tmp_path / "run", mistakes="always").read_text()
    assert "mean average precision" in page and "probability of a label" in page and "Top-1" not in page


def test_exports_carry_the_thresholds(strips: Path, tmp_path: Path) -> None:
    thresholds = list(load_trained(strips, torch.device("cpu")).thresholds)
    for format, name in (
        ("timm", "timm"),
        ("open_clip", "clip"),
        ("safetensors", "x.safetensors"),
        ("onnx", "x.onnx"),
        ("torch", "x.pt2"),
    ):
        made = export_checkpoint(strips, format, tmp_path / name)
        assert "mAP" in made.card.read_text()
    configs = [json.loads((tmp_path / path).read_text()) for path in ("timm/config.json", "clip/open_clip_config.json")]
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        configs.append({key: json.loads(file.metadata()[key]) for key in ("multi_label", "thresholds")})
    props = onnx.load(tmp_path / "x.onnx").metadata_props
    configs.append({prop.key: json.loads(prop.value) for prop in props})
    files = {"metadata.json": ""}
    probabilities = torch.export.load(tmp_path / "x.pt2", extra_files=files).module()
    configs.append(json.loads(files["metadata.json"]))
    assert all((config["multi_label"], config["thresholds"]) == (True, thresholds) for config in configs)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    colours = load_recipe("photos").augment
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (colours.mean, colours.std))
    torch.testing.assert_close(
        probabilities(pixels), FORMATS["timm"].load(tmp_path / "timm")((pixels / 255 - mean) / std).sigmoid()
    )


def test_what_needs_one_label_is_refused_in_one_line(tiny, table: Path, strips: Path, tmp_path: Path, capsys) -> None:
    new, val = tmp_path / "r", str(strips / "data/val.beton")
    sampled = options(tiny, str(strips / "data/train.beton"), new, data__val=val, data__sampling="sqrt")
    commands = {
        ("eval", strips, "--logit-adjustment"): "--logit-adjustment works with one label per image",
        ("eval", strips, "--only-present-classes"): "--only-present-classes works with one",
        ("average", strips, strips, "--out", tmp_path / "a"): "this model was trained with several. Use one of the runs",
        ("sweep", "02_lr", f"--data.train={val}", f"--data.val={val}", "--out", tmp_path / "t"): "these have several",
        ("sweep", "photos", f"--data={table}", "--lr=1e-4,1e-3", "--out", tmp_path / "t"): "fastft train, and compare",
        ("train", "photos", *options(tiny, table, new, data__multi_label="false")): "row 3: no labels. Fill the cell",
        ("train", "photos", *options(tiny, tiny["data.train"], new, data__multi_label="true")): "has one label per",
        ("train", "photos", *options(tiny, val, new, data__val=tiny["data.val"])): "class",
        ("train", "photos", *sampled): "data.sampling works with one label per image",
    }  # fmt: skip
    for command, reason in commands.items():
        assert main(list(map(str, command))) == 2, command
        assert reason in (said := capsys.readouterr().err) and said.strip().count("\n") <= 1, (command, said)
    assert not (tmp_path / "r").exists() and not list(tmp_path.rglob("*.beton"))


def test_single_labels_can_be_trained_so(tiny, tmp_path: Path) -> None:
    beton = Beton.open(tiny["data.train"])
    list(extract(beton, Manifest.of_beton(tiny["data.train"]), range(len(beton)), tmp_path / "photos"))
    recipe = load_recipe("photos", options(tiny, tmp_path / "photos", tmp_path / "run", data__multi_label="true"))
    labels = BetonSet.open(str(prepare_data(recipe, lambda text: None)[0].data.train)).labels
    assert labels.sum(1).tolist() == [1] * len(labels)


def test_loaders_give_float_targets_on_every_stage(strips: Path) -> None:
    path = str(strips / "data/train.beton")
    want = BetonSet.open(path).labels
    with EvalLoader(path, "none", 32, batch_size=16) as loader:
        assert all(batch.labels.equal(torch.from_numpy(want[batch.ids]).float()) for batch in loader)
        packed = PackedStage(loader.betons, 32, torch.device("cpu"), lambda *_: torch.zeros(3, 3, 32, 32), 1, 2)
        ids = np.array([4, 0, 9])
        _, labels = packed.run(ids, 0, lambda ids, heights, widths: eval_plan(ids, heights, widths, 32, 1.0))
        packed.close()
    assert labels.equal(torch.from_numpy(want[ids]).float())
    with TrainLoader(path, "none", Output(32), batch_size=16) as loader:
        batch = next(iter(loader))
    assert batch.labels.dtype == torch.float32 and batch.labels.shape == (16, 3)


def test_mixing_blends_label_sets_and_smoothing_keeps_one_hot_rows_as_they_were() -> None:
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    mixer = Mixer(0.8, 0, num_classes=3, seed=1, label_smoothing=0.1)
    _, targets = mixer(torch.rand(2, 3, 8, 8), labels, epoch=0, step=0, first_position=0)
    lam = mixer.draw(0, 0, 0, 8, 8).lam
    smooth = 0.9 * labels + 0.1 / 3
    torch.testing.assert_close(targets, lam * smooth + (1 - lam) * smooth.flip(0))
    one_hot = F.one_hot(torch.tensor([2, 0]), 3).float()
    torch.testing.assert_close(smoothed_targets(one_hot, 3, 0.1), smoothed_targets(torch.tensor([2, 0]), 3, 0.1))


@pytest.mark.slow
def test_two_processes_train_as_one_does(tiny, table: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run_recipe(load_recipe("photos", options(tiny, table, one)), QUIET)
    said_by(launch("train", "photos", *options(tiny, table, two)))
    assert close(losses(two), losses(one))
    ours, theirs = (json.loads((folder / "result.json").read_text())["last"]["raw"] for folder in (one, two))
    assert theirs == {key: pytest.approx(value, rel=1e-3, abs=1e-3) for key, value in ours.items()}


def test_thresholds_survive_without_an_evaluation(strips: Path) -> None:
    steps = list_checkpoints(strips / "checkpoints")
    state = read_checkpoint(steps[0], ("model",)).state
    assert state.progress.step != 0
    assert len(load_trained(steps[0], torch.device("cpu")).thresholds) == len(NAMES)


def test_a_checkpoint_with_fewer_thresholds_than_classes_is_damaged(strips: Path, monkeypatch) -> None:
    monkeypatch.setattr("fastft.evaluate.trained.stored_thresholds", lambda *_: [0.5])
    with pytest.raises(UserError, match="it has 3 classes and 1 thresholds"):
        load_trained(strips, torch.device("cpu"))


def test_an_image_of_an_unknown_label_is_named(tiny, table: Path, tmp_path: Path) -> None:
    (table.parent / "val.csv").write_text("image,labels\n0.png,coffee;cow\n")
    recipe = load_recipe("photos", options(tiny, table, tmp_path / "r", data__val=str(table.parent / "val.csv")))
    with pytest.raises(UserError, match=r"validation images of 1 class without training images \(cow: 0.png\)"):
        prepare_data(recipe, lambda text: None)
