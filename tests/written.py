"""Folders of photographs, checkpoints, run directories and benchmark files, in the form that users and fastft write them."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from beton_tools.read.beton_set import Content
from beton_tools.read.class_list import Classes
from fastft.evaluate.calibration import calibrate
from fastft.evaluate.file_report import EvaluatedFile, report_file
from fastft.evaluate.metrics import balanced_accuracy, macro_f1
from fastft.evaluate.mistakes import Mistakes, RunPredictions
from fastft.model.recipe_model import build_model
from fastft.recipe import Recipe, load_recipe
from fastft.report.run_charts import Curve, reference_of
from fastft.run.checkpoint import ModelState, State, write_checkpoint
from fastft.run.evaluations import Evaluation, Scores
from fastft.run.identity import make_identity
from fastft.run.inputs import describe_arch
from fastft.run.predictions import Predictions
from fastft.run.result import Result, write_result

RECIPES = Path(__file__).parents[1] / "rcp"
STEPS_PER_EPOCH, LOG_EVERY = 625, 50
EVALUATION, CHECKPOINT = 21.5, 2.9  # seconds
STEPS = {"start": 0.0, "wait": 3.1, "forward": 88.0, "backward": 180.5, "optimizer": 4.1, "ema": 1.6}
SMALL_CLIP: dict[str, Any] = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
LOADER = {"read": 40.0, "decode": 810.0, "copy": 1.2, "augment": 1120.0}  # as STEPS: seconds of an epoch


def predictions_of(logits_NK: np.ndarray, labels_N: np.ndarray) -> Predictions:
    """The predictions of logits, by NumPy."""
    shifted = logits_NK.astype(np.float64) - logits_NK.max(1, keepdims=True, initial=-np.inf)
    total_N = np.exp(shifted).sum(1)
    truth_N = (np.exp(shifted[np.arange(len(labels_N)), labels_N]) / total_N).astype(np.float32)
    confidence_N = (1 / total_N).astype(np.float32)
    return Predictions(labels_N, logits_NK.argmax(1), confidence_N, truth_N, logits_NK.shape[1], logits_NK)


def write_crops(
    folder: Path, photographs: Mapping[str, np.ndarray], counts: Mapping[str, int], size: int = 64, suffix: str = "png"
) -> None:
    """Square pieces of photographs from random places: <folder>/<name>/<number>.<suffix>, as many of each as `counts` says."""
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            y, x = (int(rng.integers(0, n - size)) for n in photographs[name].shape[:2])
            crop = Image.fromarray(photographs[name][y : y + size, x : x + size])
            crop.save(folder / name / f"{i:02}.{suffix}", quality=95)


def write_clip(folder: Path) -> None:
    """`clip.json` and `clip.safetensors` of a small open_clip model, whose every tensor is away from its initial value."""
    torch.manual_seed(0)
    clip = open_clip.CLIP(**SMALL_CLIP).eval()
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        clip.logit_scale.fill_(3.0)
    (folder / "clip.json").write_text(json.dumps(SMALL_CLIP))
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, folder / "clip.safetensors")


def make_checkpoint(
    folder: Path,
    vision: dict,
    scores: Mapping[str, float] = {},
    classes: Sequence[str] = "abcdefg",
    **overrides: object,
) -> Path:
    """The run directory `folder`/run with one checkpoint of a tiny model, whose every tensor is away from its initial value."""
    quick_gelu = vision.pop("quick_gelu", False)
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32} | vision
    config = {"embed_dim": 32, "quick_gelu": quick_gelu, "vision_cfg": vision}
    (folder / "arch.json").write_text(json.dumps(config))
    values = {
        "model.arch": folder / "arch.json", "model.weights": "random", "model.image_size": 32,
        "data.num_classes": len(classes), "data.val": "elsewhere/val.beton",
    }  # fmt: skip
    values |= {key.replace("__", "."): value for key, value in overrides.items()}
    recipe = load_recipe(RECIPES / "final_b16.yaml", [f"--{k}={v}" for k, v in values.items()])
    model = build_model(recipe)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    raw = Scores(**{"top1": 61.25, "top5": 90.0, "loss": 1.5, "samples": 80, **scores})
    data = Content(num_samples=0, files=[], identities=[])
    identity = make_identity(recipe, describe_arch(recipe), Classes.of_labels(classes, None), data)
    constant = ModelState.of_run(recipe.name, identity, [1] * len(classes))
    state = State.of(constant, evaluation=Evaluation(epoch=3, raw=raw))
    path = folder / "run" / "checkpoints" / "best-0003"
    write_checkpoint(path, state, {"model": model.state_dict()})
    write_recipe(path.parents[1], recipe)
    return path


def write_recipe(folder: Path, recipe: Recipe) -> None:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(recipe.as_dict())), sort_keys=False))


def predicted(predictions: Predictions, names: Sequence[str], mistakes: Mistakes | None = None) -> RunPredictions:
    """Equal to what `predict_validation` gives."""
    calibration = calibrate(predictions)
    scores = Scores(
        samples=len(predictions.labels_N), loss=1.0, balanced_accuracy=balanced_accuracy(predictions),
        macro_f1=macro_f1(predictions), ece=calibration.plain.ece,
    )  # fmt: skip
    model = SimpleNamespace(path="", weights="EMA weights", outputs=names, main_score="top1")
    report = report_file(model, EvaluatedFile(Path(), scores, predictions, len(names)))  # type: ignore[arg-type]
    return RunPredictions(report, mistakes or Mistakes(len(predictions.labels_N), 0, []), calibration)


def write_run(folder: Path, recipe_name: str, epochs: int, *overrides: str, split: bool = True) -> Path:
    """A run of a final recipe after `epochs`: the reference's curve with noise, as lines of metrics.jsonl.

    split: with the seconds of steps and checkpoints, which the first versions did not log.
    """
    recipe = load_recipe(RECIPES / f"{recipe_name}.yaml", overrides)
    noise = np.random.default_rng(0)
    _, curve = reference_of(recipe.model.arch, recipe.model.image_size)
    lines: list[dict[str, Any]] = [_start()]
    for epoch in range(epochs):
        here, before = curve.train_loss[epoch], curve.train_loss[max(0, epoch - 1)]
        for first, step in pairwise([*range(0, STEPS_PER_EPOCH, LOG_EVERY), STEPS_PER_EPOCH]):
            share = step / STEPS_PER_EPOCH
            position = (epoch + share) / recipe.schedule.epochs
            loss = before + share * (here - before)
            line = _interval(epoch, epoch * STEPS_PER_EPOCH + step, loss, position, noise)
            lines.append(line | {"split": split_of(step - first)} if split else line)
        lines.append(_evaluation(epoch, curve, noise))
        if split:
            lines.append({"kind": "checkpoint", "step": (epoch + 1) * STEPS_PER_EPOCH, "seconds": CHECKPOINT})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_recipe(folder, recipe)
    if epochs == recipe.epochs:
        write_result(folder, Result(recipe=recipe.name, epochs=epochs, seconds=1.0, expectation=""))
    return folder


def _start() -> dict[str, Any]:
    machine = {
        "device": "Tesla V100-SXM2-16GB",
        "device_type": "cuda",
        "world_size": 8,
        "cores": 32,
        "precision": "float16",
        "torch": "2.10.0",
    }
    return {"kind": "start", "step": 0, **machine}


def _interval(epoch: int, step: int, loss: float, position: float, noise: np.random.Generator) -> dict[str, Any]:
    rate = 4300 * (1 + 0.02 * noise.standard_normal())
    return {
        "kind": "train", "epoch": epoch, "step": step, "loss": loss + 0.01 * noise.standard_normal(),
        "lr": 6e-4 * min(5 * position, 0.5 + 0.5 * math.cos(math.pi * position)), "images_per_second": rate,
        "wait_share": abs(0.01 * noise.standard_normal()), "mfu": rate * 105.4e9 / 1e15, "memory_gib": 13.4,
        "seconds_left": (50 * STEPS_PER_EPOCH - step) * 2048 / rate,
    }  # fmt: skip


def _evaluation(epoch: int, curve: Curve, noise: np.random.Generator) -> dict[str, Any]:
    line = {"kind": "eval", "step": (epoch + 1) * STEPS_PER_EPOCH, "epoch": epoch, "seconds": EVALUATION}
    for kind in ("raw", "ema"):
        top1 = getattr(curve, f"top1_{kind}")[epoch] + 0.08 * noise.standard_normal()
        line |= {f"{kind}_top1": top1, f"{kind}_top5": 100 - (100 - top1) / 6, f"{kind}_samples": 50_000}
        line[f"{kind}_loss"] = 4.4 * (1 - top1 / 100)
    return line


def split_of(steps: int) -> dict[str, float]:
    """Seconds by part of so many steps."""
    return {part: seconds * steps / STEPS_PER_EPOCH for part, seconds in (STEPS | LOADER).items()}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run of final_b16."""
    return write_run(tmp_path / "final_b16", "final_b16", 50)
