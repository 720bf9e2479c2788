"""Logit adjustment subtracts the logarithm of the class sizes; the fitted temperature changes no ranking."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

import fastft
from beton_tools.base.errors import UserError
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.cli import main
from fastft.evaluate import trained as trained_module
from fastft.evaluate.evaluation import evaluate_checkpoint
from fastft.evaluate.predictor import Predictor
from fastft.evaluate.trained import adjust_logits, load_trained, log_shares, scale_head
from fastft.export import FORMATS, export_checkpoint
from fastft.export.card import _temperature
from fastft.export.to_safetensors import load
from fastft.recipe.constants import CLIP_MEAN, CLIP_STD
from fastft.report.run_figures import headline
from fastft.run.result import read_result
from fastft.run.run_directory import load_run
from fastft.train.progress import describe_evaluation
from tests.export.test_export import CLIP, OUTS
from tests.train.runs import logged, result_of, run
from tests.written import make_checkpoint, write_crops

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def imbalanced(tiny: dict[str, str], photographs: dict[str, np.ndarray], tmp_path_factory) -> Path:
    """A run on 44 and 4 training images of two classes."""
    folder = tmp_path_factory.mktemp("imbalanced")
    write_crops(folder / "images", photographs, {"astronaut": 44, "coffee": 4}, suffix="jpg")
    convert_folder(folder / "images", folder / "train.beton", WriteOptions(workers=0))
    run(tiny, folder / "run", data__train=str(folder / "train.beton"))
    return folder


def test_the_best_epoch_of_an_imbalanced_run_is_chosen_by_balanced_accuracy(imbalanced):
    result = result_of(imbalanced / "run")
    scores = [e["ema"]["balanced_accuracy"] for e in result["evaluations"]]
    assert result["best"]["ema"]["balanced_accuracy"] == max(scores)
    lines = logged(imbalanced / "run", "eval")
    assert {line["best_by"] for line in lines} == {"balanced_accuracy"}
    assert [line["ema_balanced_accuracy"] for line in lines] == scores
    figures = f"balanced accuracy {scores[-1]:.2f} %, top-1 {result['last']['ema']['top1']:.2f} %"
    assert figures in repr(fastft.load(imbalanced / "run"))
    assert headline(load_run(imbalanced / "run"))[0].label == "EMA balanced accuracy"
    assert describe_evaluation(read_result(imbalanced / "run").last).startswith("epoch 2: balanced accuracy raw ")


def test_a_balanced_run_is_judged_by_top1(whole):
    lines = logged(whole, "eval")
    assert lines and not any("best_by" in line for line in lines)


def test_logits_are_reduced_by_the_log_share_of_the_training_images(imbalanced):
    trained = replace(load_trained(imbalanced / "run", CPU), temperature=2.0)
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        before = trained.model(images)
        adjusted = adjust_logits(trained)
        difference = before - adjusted.model(images)
    assert adjusted.temperature is None  # it was fitted without the correction
    assert adjusted.weights == f"{trained.weights}, logits adjusted for the class sizes"
    expected = (0.9 * torch.tensor([44 / 48, 4 / 48]) + 0.1 / 2).log()  # as label smoothing leaves the targets
    torch.testing.assert_close(difference, expected.expand(3, 2))


def test_a_model_on_a_gpu_is_adjusted_there(imbalanced):
    trained = load_trained(imbalanced / "run", CPU)
    with FakeTensorMode(allow_non_fake_inputs=True):  # as tensors without data, which check devices
        head = SimpleNamespace(bias=torch.empty(2, device="cuda"))
        adjust_logits(replace(trained, model=SimpleNamespace(head=head)))
    assert head.bias.device.type == "cuda"


def test_outputs_without_training_images_are_not_preferred():
    largest, none, few = log_shares([30, 0, 10]).tolist()
    assert none == largest > few


def test_prediction_and_export_are_adjusted_as_the_evaluation_is(imbalanced, tmp_path, capsys):
    image = imbalanced / "images/coffee/00.jpg"
    plain, adjusted = (
        next(Predictor(imbalanced / "run", "cpu", logit_adjustment=on, temperature=False).predict([image]))
        for on in (False, True)
    )
    ratio = np.divide(*adjusted.probabilities) / np.divide(
        *[plain.probabilities[plain.classes.index(name)] for name in adjusted.classes]
    )
    assert np.log(ratio) == pytest.approx(
        np.log(0.875 / 0.125) * (1 if adjusted.classes[0] == "coffee" else -1), abs=1e-3
    )
    out = tmp_path / "adjusted.safetensors"
    assert main(["export", str(imbalanced / "run"), "--logit-adjustment", "--format=safetensors", f"--out={out}"]) == 0
    assert "logits adjusted for the class sizes" in capsys.readouterr().err
    card = out.with_name("adjusted.safetensors.md").read_text()
    assert "these weights were not evaluated" in card and "with the same adjustment differ" in card
    expected = adjust_logits(load_trained(imbalanced / "run", CPU)).model.head.bias
    assert torch.equal(load(out).head.bias, expected)


def test_adjusted_evaluation_predicts_the_rare_class_more_often(imbalanced):
    """`class_counts` are stored in the checkpoint: the training file is not read."""
    plain, adjusted = (
        evaluate_checkpoint(imbalanced / "run", None, "cpu", logit_adjustment=on) for on in (False, True)
    )
    counts = [np.array(scores.confusion_matrix).sum(0) for scores in (plain, adjusted)]
    assert counts[1][1] >= counts[0][1] and adjusted.loss != plain.loss
    assert adjusted.logit_adjustment and not plain.logit_adjustment


def test_class_sizes_that_contradict_the_classes_are_damage(imbalanced):
    with pytest.raises(UserError, match="damaged"):
        adjust_logits(replace(load_trained(imbalanced / "run", CPU), class_counts=[1, 2, 3]))


FITTED = {"temperature": 2.5, "ece": 9.0, "ece_scaled": 3.0}


def predicted(run: Path, photo: Path, temperature: bool = True) -> dict[str, float]:
    (found,) = Predictor(run, "cpu", temperature=temperature).predict(photo, topk=7)
    return dict(zip(found.classes, found.probabilities, strict=True))


@pytest.fixture
def photo(tmp_path: Path, photographs: dict[str, np.ndarray]) -> Path:
    Image.fromarray(photographs["coffee"][:64, :64]).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_predict_applies_it_says_so_and_can_be_told_not_to(tmp_path, photo, capsys):
    make_checkpoint(tmp_path, dict(CLIP), FITTED)
    scaled, plain = (predicted(tmp_path / "run", photo, on) for on in (True, False))
    assert list(scaled) == list(plain)
    powers = np.array(list(plain.values())) ** (1 / 2.5)
    assert list(scaled.values()) == pytest.approx(powers / powers.sum(), rel=1e-4)
    command = ["predict", str(tmp_path / "run"), str(photo), "--device=cpu"]
    line = "logits are divided by the temperature 2.500, fitted on 80 held-out images"
    for extra, says in (([], True), (["--no-temperature"], False)):
        assert main([*command, *extra]) == 0
        assert (line in capsys.readouterr().err) == says


@pytest.mark.parametrize("format", FORMATS)
def test_exports_have_it_in_the_head_and_name_it(tmp_path, format):
    make_checkpoint(tmp_path, dict(CLIP), FITTED)
    out = tmp_path / OUTS[format]
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    images = (pixels / 255 - mean) / std
    with torch.no_grad():
        want = load_trained(tmp_path / "run", CPU).model(images)
        for on, divisor in ((True, 2.5), (False, 1.0)):
            done = export_checkpoint(tmp_path / "run", format, out, overwrite=True, temperature=on)
            # the torch file takes pixels and gives probabilities
            inputs, outputs = (pixels, (want / divisor).softmax(1)) if format == "torch" else (images, want / divisor)
            torch.testing.assert_close(FORMATS[format].load(out)(inputs), outputs, rtol=1e-3, atol=1e-4)
            card = done.card.read_text()
            assert ("divided by the temperature 2.5, which changes no ranking" in card) == on
            config = {"timm": out / "config.json", "open_clip": out / "open_clip_config.json"}.get(format)
            if config:
                stored = json.loads(config.read_text()).get("temperature")
                assert stored == ({"value": 2.5, "in_head": True, "images": 80} if on else None)


def test_it_stays_out_of_a_head_whose_rankings_would_change(tmp_path, monkeypatch):
    """Two outputs that rounding makes equal: here every ranking counts as changed."""
    make_checkpoint(tmp_path, dict(CLIP), FITTED)
    before = load_trained(tmp_path / "run", CPU).model.state_dict()
    monkeypatch.setattr(trained_module.torch, "equal", lambda a, b: False)
    found = scale_head(load_trained(tmp_path / "run", CPU), torch.randn(2, 3, 32, 32))
    monkeypatch.undo()
    assert not found.has_scaled_head and found.temperature_record["temperature"]["in_head"] is False
    assert all(torch.equal(value, before[name]) for name, value in found.model.state_dict().items())
    assert "Divide the logits by the temperature 2.5" in _temperature(found)
