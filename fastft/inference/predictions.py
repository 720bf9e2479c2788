"""What a checkpoint says about every image of a `.beton`, and where it is wrong: for reports."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beton_tools.errors import UserError
from beton_tools.format import Beton
from beton_tools.manifest import Manifest
from fastft.data import EvalLoader
from fastft.files.run_directory import Run
from fastft.inference.mistakes import Mistakes, find_mistakes, thumbnail
from fastft.inference.predict import BATCH, load_trained
from fastft.train.checkpoint import find_checkpoint
from fastft.train.distributed import find_world
from fastft.train.precision import inference_precision

FEW_IMAGES = 3000  # that a CPU predicts in a minute or two


@dataclass(frozen=True)
class Predictions:
    """logits_NK: float32 (N, K). labels_N: int64 (N,). Both in the order of the file."""

    checkpoint: str
    classes: list[str]
    logits_NK: np.ndarray
    labels_N: np.ndarray


@torch.inference_mode()
def predict_beton(checkpoint: Path, data: Path, device: str) -> Predictions:
    """Logits of a checkpoint for every image of a file, on one device.

    Raises:
        UserError: no such checkpoint or file, or a damaged one.
    """
    path = find_checkpoint(checkpoint)
    world = find_world(device)
    with world:
        trained = load_trained(path, world.device)
        recipe, precision = trained.recipe, inference_precision(trained.recipe.train.amp, world.device)
        size, crop_pct = recipe.model.image_size, recipe.train.eval_crop_pct
        look: dict[str, Any] = {
            "mean": recipe.augment.mean,
            "std": recipe.augment.std,
            "dtype": precision.dtype,
        }
        logits, labels = [], []
        with EvalLoader(
            data, size=size, crop_pct=crop_pct, batch_size=BATCH, device=world.device, **look
        ) as loader:
            for batch in loader:
                with precision.autocast():
                    logits.append(trained.model(batch.images).float().cpu().numpy())
                labels.append(batch.labels.cpu().numpy())
    return Predictions(path.name, trained.classes, np.concatenate(logits), np.concatenate(labels))


def find_run_mistakes(run: Run, insist: bool) -> tuple[Mistakes | None, str]:
    """Mistakes of a run's best checkpoint with their images, or None and why there are none.

    Unless `insist`, only with a GPU, or where the validation images are few.

    Raises:
        UserError: `insist`, and the validation file or the checkpoint cannot be read.
    """
    if run.recipe.data.val is None:
        return None, "The run has no validation data."
    try:
        beton = Beton.open(run.recipe.data.val)
        checkpoint = find_checkpoint(run.folder)
    except UserError as error:
        if insist:
            raise
        return None, f"Left out: {error}."
    if not insist and len(beton) > FEW_IMAGES and not torch.cuda.is_available():
        return (
            None,
            f"Left out: {len(beton):,} images take long without a GPU (--mistakes=always predicts them).",
        )
    try:
        p = predict_beton(checkpoint, beton.path, "auto")
    except UserError as error:
        if insist:
            raise
        return None, f"Left out: {error}."
    found = find_mistakes(p.logits_NK, p.labels_N, _readable(beton.path, p.classes))
    surest = [replace(m, image=thumbnail(beton, m.sample)) for m in found.surest]
    return replace(found, surest=surest), ""


def _readable(data: Path, classes: list[str]) -> list[str]:
    """Class names for people where the file's manifest has them."""
    manifest = Manifest.of_beton(data)
    return classes if manifest is None or manifest.class_names is None else manifest.class_names
