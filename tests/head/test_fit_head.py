"""A run with `model.head_init=probe` starts from a ridge regression head, which it evaluates, stores and restores."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge

from beton_tools.base import progress_bar
from beton_tools.base.console import make_console
from beton_tools.base.errors import UserError
from fastft.cli import main
from fastft.evaluate import linear_probe, ridge, trained
from fastft.evaluate.calibration import calibrate
from fastft.evaluate.evaluation import evaluate_checkpoint
from fastft.evaluate.linear_probe import _fit_in_one_pass, draw_scored
from fastft.evaluate.ridge import LabelledFeatures, RidgeHead, fit_ridge_head
from fastft.evaluate.trained import load_trained
from fastft.jobs.run import run_recipe
from fastft.machine.distributed import World
from fastft.machine.precision import Precision
from fastft.model import ImageClassifier
from fastft.model.head_file import read_head
from fastft.model.recipe_model import build_model
from fastft.recipe import Recipe, load_recipe
from fastft.report.run_report import render_run
from fastft.report.run_times import run_cost
from fastft.run.find_weights import find_weights
from fastft.run.result import read_result
from fastft.run.run_directory import load_run
from fastft.train.progress import conclusion
from tests.train.runs import differing, end, flags, logged, losses, result_of, rewind, run
from tests.train.test_distributed import launch, said_by
from tests.written import predictions_of

PROBE = {"model__head_init": "probe"}
ALONE = World(0, 1, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def probed(tiny: dict[str, str], tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("probed")
    run(tiny, folder, train__keep_checkpoints="100", **PROBE)
    return folder


def test_the_baseline_is_the_evaluation_of_the_head_before_the_first_step(probed):
    result = result_of(probed)
    report = evaluate_checkpoint(probed, None, "cpu", weights="probe")
    assert report.top1 == result["baseline"]["raw"]["top1"]
    assert report.top1 > 70  # two photographs differ in colour: features of a random tower are enough
    assert result["baseline"]["images"] == 48 and result["baseline"]["scale"] > 1
    (line,) = logged(probed, "baseline")
    assert line["raw_top1"] == report.top1 and line["step"] == 0
    assert load_run(probed).baseline.raw.top1 == report.top1
    assert not (probed / linear_probe.FEATURES).exists()


def test_the_probe_is_evaluated_predicted_exported_and_averaged_with(tiny, probed, tmp_path, capsys):
    """The pretrained tower with the head that the run directory keeps."""
    stored = load_trained(probed, torch.device("cpu"), "probe").model.state_dict()
    fresh = build_model(load_run(probed).recipe).state_dict()
    assert [name for name in fresh if not torch.equal(fresh[name], stored[name])] == ["head.weight", "head.bias"]
    result = result_of(probed)
    assert evaluate_checkpoint(probed, None, "cpu", weights="probe").top1 == result["baseline"]["raw"]["top1"]
    photo, out = next((Path(tiny["data.val"]).parent / "val").rglob("*.jpg")), tmp_path / "probe.safetensors"
    assert main(["predict", str(probed), str(photo), "--weights=probe", "--device=cpu"]) == 0
    assert "using the pretrained tower with the linear probe's head" in capsys.readouterr().err
    assert main(["export", str(probed), "--weights=probe", "--format=safetensors", f"--out={out}"]) == 0
    assert f"The linear probe's head: top-1 {result['baseline']['raw']['top1']:.3f} %." in Path(f"{out}.md").read_text()
    assert main(["average", "start", str(probed), "--alpha=0", f"--out={tmp_path / 'start'}", "--device=cpu"]) == 0
    assert torch.equal(load_trained(tmp_path / "start", torch.device("cpu")).model.head.weight, stored["head.weight"])


def test_the_probe_is_compared_image_by_image(probed):
    result = result_of(probed)
    last, before = result["last"], result["baseline"]["raw"]
    for weights, found in last["against_probe"].items():
        difference = found["first_only"] - found["second_only"]
        assert 100 * difference / before["samples"] == pytest.approx(last[weights]["top1"] - before["top1"])
    chosen = result["weights"]
    assert chosen["gain"]["gain"] == pytest.approx(chosen["top1"] - before["top1"])


def test_the_cost_of_a_run_includes_set_up_and_head(probed):
    rows = run_cost(load_run(probed), None).rows[:2]
    assert [row.what for row in rows] == ["set-up", "head"] and all(row.wall_seconds > 0 for row in rows)


def test_a_run_that_chose_its_probe_is_used_with_it(probed, tmp_path, monkeypatch):
    shutil.copytree(probed, tmp_path / "run")
    path = tmp_path / "run/result.json"
    result = json.loads(path.read_text())
    note = "fine-tuning changed the accuracy by -10"
    result["weights"] |= {"take": "probe", "kind": "probe", "reason": "it is better"}
    result["weights"]["gain"]["note"] = note
    path.write_text(json.dumps(result))
    said = conclusion(read_result(tmp_path / "run"))
    assert f"result: top-1 {result['baseline']['raw']['top1']:.3f} % of 20 images with the linear probe" in said
    report = evaluate_checkpoint(tmp_path / "run", None, "cpu")
    assert report.weights == "pretrained tower with the linear probe's head: it is better"
    assert report.top1 == result["baseline"]["raw"]["top1"]
    page = render_run(load_run(tmp_path / "run"))
    assert "probe top-1" in page and note.capitalize() in page and "before training, standard error" in page
    for wanted in ("last", "best"):
        assert find_weights(tmp_path / "run", wanted).kind == "ema"

    def changed(recipe: Recipe, **options: Any) -> ImageClassifier:
        return build_model(recipe.with_option("train.seed", recipe.train.seed + 1), **options)

    with monkeypatch.context() as patched:  # as if the file of the pretrained weights were another one now
        patched.setattr(trained, "build_model", changed)
        with pytest.raises(
            UserError, match=r"probe\.safetensors was fitted to other weights than model\.weights random has now"
        ):
            load_trained(tmp_path / "run", torch.device("cpu"))
    (tmp_path / "run/probe.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no probe\.safetensors, which only runs with .* Give other --weights"):
        find_weights(tmp_path / "run")


@pytest.mark.parametrize("kept", [0, 5])
def test_a_resume_is_bit_exact(tiny, probed, tmp_path, kept, monkeypatch):
    """From the fitted head and from a later step; the head is not computed again."""
    shutil.copytree(probed, tmp_path / "run")
    rewind(tmp_path / "run", kept)
    monkeypatch.setattr(linear_probe, "fit_ridge_head", None)
    run(tiny, tmp_path / "run", train__keep_checkpoints="100", **PROBE)
    assert losses(tmp_path / "run") == losses(probed)
    assert differing(end(tmp_path / "run"), end(probed)) == []
    assert len(logged(tmp_path / "run", "baseline")) == 1
    assert result_of(tmp_path / "run")["baseline"] == result_of(probed)["baseline"]


@pytest.mark.slow
def test_two_processes_start_from_the_same_head_as_one(tiny, probed, tmp_path):
    command = flags(tiny, tmp_path / "two", train__micro_batch="2", train__keep_checkpoints="100", **PROBE)
    said_by(launch("train", "rcp/final_b16.yaml", *command))
    heads = [read_head(folder / "probe.safetensors").weight_KD.numpy() for folder in (tmp_path / "two", probed)]
    np.testing.assert_allclose(heads[0], heads[1], rtol=2e-3, atol=1e-4)
    baselines = [result_of(folder)["baseline"] for folder in (tmp_path / "two", probed)]
    assert baselines[0]["raw"]["top1"] == baselines[1]["raw"]["top1"]


def test_the_head_of_many_images_is_made_in_one_pass(tiny, probed, tmp_path, monkeypatch):
    monkeypatch.setattr(linear_probe, "MOST_IMAGES", 47)
    result = run(tiny, tmp_path, data__selection_share="0.25", schedule__stop_epoch="1", **PROBE)
    assert result["baseline"]["images"] == 36 and result["baseline"]["seconds"] > 0
    monkeypatch.setattr(linear_probe, "MOST_IMAGES", 35)
    monkeypatch.setattr(linear_probe, "fit_ridge_head", None)
    assert run(tiny, tmp_path / "large", schedule__stop_epoch="1", **PROBE)["baseline"]["raw"]["top1"] > 70


def test_a_run_without_validation_data_has_the_head_but_no_baseline_accuracy(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress_bar, "PLAIN_INTERVAL", 0)  # a line for every batch
    options = flags(tiny, tmp_path, data__val="none", schedule__stop_epoch="1", **PROBE)
    result = run_recipe(load_recipe("rcp/final_b16.yaml", options), make_console())[1]
    assert result.baseline.images == 48 and result.baseline.raw is None
    assert "linear probe: 0 of 48 images\nlinear probe: 32 of 48 images" in (said := capsys.readouterr().out), said
    assert " ".join(said.split()).count("no validation images, so nothing will tell whether fine-tuning is better") == 1


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test images and labels, 64 features, in a random order."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = (images[order] / 16).astype(np.float32), labels[order].astype(np.int64)
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


def test_logits_of_many_classes_are_calibrated():
    """Eight images of each of 400 classes: their scores lie so close together that a scale of 54.6 was too small."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(400), 12)
    centres, noise = rng.normal(size=(400, 64)), rng.normal(size=(len(labels), 64))
    images = (centres[labels] + 1.5 * noise).astype(np.float32)
    fitted = np.arange(len(labels)) % 12 < 8
    head = fit_ridge_head(LabelledFeatures(images[fitted], labels[fitted], 400))
    p = predictions_of(images[~fitted] @ head.weight_KD.T + head.bias_K, labels[~fitted])
    assert head.scale > 100
    assert calibrate(p).temperature == pytest.approx(1, abs=0.25)


def test_the_images_that_choose_penalty_and_scale_are_of_all_classes(digits, monkeypatch):
    images, labels, _, _ = digits
    by_class, whole = np.argsort(labels, kind="stable"), fit_ridge_head(LabelledFeatures(images, labels, 10))
    monkeypatch.setattr(ridge, "SCORED_VALUES", 10 * 300)
    head = fit_ridge_head(LabelledFeatures(images[by_class], labels[by_class], 10))
    assert head.scale == pytest.approx(whole.scale, rel=0.2)


def test_features_that_are_nan_are_one_line():
    with pytest.raises(UserError, match=r"gives NaN or Inf for training images. Check model\.weights"):
        fit_ridge_head(LabelledFeatures(np.full((6, 8), np.nan, np.float32), np.arange(6) % 3, 3))


@pytest.mark.parametrize("count", [2, 3, 6])
def test_a_few_images_are_enough(count):
    features = np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32)
    features[:, 0] = 1
    head = fit_ridge_head(LabelledFeatures(features, np.arange(count) % 3, 5))
    assert np.isfinite(head.weight_KD).all() and np.isfinite(head.bias_K).all()
    assert head.weight_KD.shape == (5, 8)


class AsFeatures(torch.nn.Module):
    """A model whose images are its features."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(width, classes)

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        return images


class OneOfTwo(World):
    """A process whose peer's sums and rows are known already; it records its own."""

    def __init__(self, theirs: list[torch.Tensor]) -> None:
        super().__init__(0, 1, 0, torch.device("cpu"))
        self.theirs, self.mine = list(theirs), []

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        self.mine.append(values.clone())
        return values.add_(self.theirs.pop(0)) if self.theirs else values

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        self.mine.append(rows)
        return torch.cat([rows, self.theirs.pop(0)]) if self.theirs else rows


def one_pass(images: np.ndarray, labels: np.ndarray, world: World, part: slice = slice(None)) -> RidgeHead:
    batches = [
        SimpleNamespace(images=torch.from_numpy(images[ids]), labels=torch.from_numpy(labels[ids]), ids=ids)
        for ids in np.array_split(np.arange(len(images))[part], 7)
    ]

    class Loader(list):
        num_samples = len(images)

    model, precision = AsFeatures(images.shape[1], 10), Precision(torch.float32, "cpu")
    return _fit_in_one_pass(
        model, Loader(batches), world, precision, draw_scored(np.arange(len(images)), 10, 0), lambda: False
    )


def at_once(images: np.ndarray, labels: np.ndarray, world: World) -> RidgeHead:
    return fit_ridge_head(LabelledFeatures(images, labels, 10))


@pytest.mark.parametrize("fit", [at_once, one_pass])
def test_the_head_is_scaled_ridge_regression_on_one_hot_labels_and_calibrated(digits, fit):
    images, labels, test_images, test_labels = digits
    head = fit(images, labels, ALONE)
    variance = images.astype(np.float64).var(0).mean()
    expected = Ridge(alpha=head.penalty * variance * len(labels)).fit(images.astype(float), np.eye(10)[labels])
    assert head.weight_KD == pytest.approx(head.scale * expected.coef_, rel=1e-3, abs=1e-4)
    assert head.bias_K == pytest.approx(head.scale * expected.intercept_, rel=1e-3, abs=1e-4)
    logits = test_images @ head.weight_KD.T + head.bias_K
    p = predictions_of(logits, test_labels)
    found, unscaled = calibrate(p), calibrate(predictions_of(logits / head.scale, test_labels))
    assert p.right_N.mean() > 0.9 and found.temperature == pytest.approx(1, abs=0.25)
    assert found.plain.ece < unscaled.plain.ece / 4


def test_two_processes_solve_what_one_does(digits):
    images, labels, _, _ = digits
    whole = one_pass(images, labels, ALONE)
    second = OneOfTwo([])
    one_pass(images, labels, second, slice(500, None))
    both = one_pass(images, labels, OneOfTwo(second.mine), slice(500))
    assert both.penalty == whole.penalty
    assert both.weight_KD == pytest.approx(whole.weight_KD, rel=1e-4) and both.scale == pytest.approx(
        whole.scale, rel=1e-3
    )


# a run that stops at the head ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head_only(tiny: dict[str, str], tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("head_only")
    run(tiny, folder, **PROBE, schedule__stop_epoch="0", model__pool="class+patches", model__trainable_layers="0")
    return folder


def test_a_run_that_stops_at_the_head_has_its_accuracy_and_is_used_as_any_other(head_only, tmp_path):
    result = result_of(head_only)
    assert (result["epochs"], result["evaluations"], losses(head_only)) == (0, [], [])
    assert (result["weights"]["take"], result["weights"]["top1"]) == ("probe", result["baseline"]["raw"]["top1"])
    assert evaluate_checkpoint(head_only, None, "cpu").top1 == result["weights"]["top1"] > 70
    said = conclusion(read_result(head_only))
    assert (
        f"top-1 {result['weights']['top1']:.3f} % of 20 images with the linear probe" in said
        and "the run has no steps" in said
    )
    assert "nothing else was evaluated" in render_run(load_run(head_only))
    trained_model = load_trained(head_only, torch.device("cpu")).model
    assert trained_model.head.in_features == 2 * trained_model.visual.arch.width
    assert main(["export", str(head_only), "--format", "safetensors", "--out", str(tmp_path / "out.safetensors")]) == 0


def test_it_does_not_fit_its_head_again_and_training_can_go_on_from_it(tiny, head_only, tmp_path, monkeypatch):
    again = shutil.copytree(head_only, tmp_path / "again")
    changes = {**PROBE, "model__pool": "class+patches", "model__trainable_layers": "0"}
    monkeypatch.setattr("fastft.head.fit_head.probe_of_run", lambda *_: pytest.fail("fitted again"))
    before = result_of(head_only)
    assert run(tiny, again, **changes, schedule__stop_epoch="0")["weights"] == before["weights"]
    result = run(tiny, again, **changes, schedule__stop_epoch="1")
    assert result["epochs"] == 1 and result["baseline"] == before["baseline"]


def test_a_run_without_steps_needs_a_linear_probe(tiny, tmp_path):
    with pytest.raises(UserError, match=r"Set model\.head_init to probe"):
        run(tiny, tmp_path / "run", schedule__stop_epoch="0")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("most", [100, 10])
def test_groups_and_identical_images_stay_together_when_the_head_is_scored(tiny, tmp_path, monkeypatch, most):
    """most: up to which number of images their features are kept."""
    units = []
    monkeypatch.setattr(linear_probe, "MOST_IMAGES", most)
    monkeypatch.setattr(
        linear_probe, "LabelledFeatures", lambda *data: units.append(data[-1]) or LabelledFeatures(*data)
    )
    monkeypatch.setattr(linear_probe, "draw_scored", lambda *drawn: units.append(drawn[0]) or draw_scored(*drawn))
    rows = ["image,label,group"]
    for i in range(32):
        name = f"{i:02}.png"  # the last two images are equal, in groups of two before that
        pixels = np.random.default_rng(min(i, 30)).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        rows.append(f"{name},{'ab'[i // 16]},{f'g{i // 2}' if i < 30 else ''}")
    (tmp_path / "photos.csv").write_text("\n".join(rows))
    main(["convert", "folder", f"--data={tmp_path / 'photos.csv'}", f"--out={tmp_path / 'train.beton'}", "--workers=0"])
    changed = tiny | {"data.train": str(tmp_path / "train.beton"), "data.val": "none", "data.num_classes": "2"}
    run(changed, tmp_path / "run", schedule__stop_epoch="0", **PROBE)
    assert units  # also those of the features that are read again from the run directory
    for unit_N in units:
        assert len(np.unique(unit_N)) == 16 and all(unit_N[i] == unit_N[i + 1] for i in range(0, 32, 2))
