"""Logits of a checkpoint for every image of a `.beton` file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from beton_tools.read.beton_paths import BetonPaths
from beton_tools.read.beton_set import BetonSet
from fastft.augment.recipe_policy import build_policy
from fastft.data import EvalLoader, Output
from fastft.evaluate.trained import BATCH, load_trained
from fastft.recipe.constants import AUTO
from fastft.train.distributed import find_world
from fastft.train.precision import inference_precision


@dataclass(frozen=True)
class FileLogits:
    """logits_NK: float32 (N, K). labels_N: int64 (N,). Both in the order of the file."""

    checkpoint: str
    classes: list[str]
    logits_NK: np.ndarray
    labels_N: np.ndarray

    @property
    def right_N(self) -> np.ndarray:
        """bool (N,): whether the class with the largest logit is the label."""
        return self.logits_NK.argmax(1) == self.labels_N


@torch.inference_mode()
def compute_logits(
    checkpoint: Path, data: BetonPaths | BetonSet, device: str, weights: str = AUTO
) -> FileLogits:
    """Logits of a checkpoint for every image of a file, on one device; weights: as `load_trained`.

    Raises:
        UserError: there is no such checkpoint or file, or it is damaged.
    """
    world = find_world(device)
    logits, labels = [], []
    with world:
        trained = load_trained(checkpoint, world.device, weights)
        recipe, precision = trained.recipe, inference_precision(trained.recipe.train.amp, world.device)
        output = Output(recipe.model.image_size, world.device, precision.dtype)
        crop_pct = recipe.train.eval_crop_pct
        with EvalLoader(data, build_policy(recipe), output, batch_size=BATCH, crop_pct=crop_pct) as loader:
            for batch in loader:
                with precision.autocast():
                    logits.append(trained.model(batch.images).float().cpu().numpy())
                labels.append(batch.labels.cpu().numpy())
    return FileLogits(trained.path.name, trained.classes, np.concatenate(logits), np.concatenate(labels))
