"""The head of a run that starts from ridge regression on the frozen tower (`model.head_init=probe`).

Fine-tuning from a random head distorts pretrained features while the head is learnt; starting from a linear probe avoids this
(LP-FT, 2202.10054).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from beton_tools.base.errors import UserError
from fastft.augment.recipe_policy import build_policy
from fastft.data import EvalLoader, Output, Shard
from fastft.model import ImageClassifier
from fastft.recipe import Recipe
from fastft.train.distributed import World
from fastft.train.evaluate import forward
from fastft.train.precision import Precision
from fastft.train.preempt import SignalGuard
from fastft.train.ridge_head import fit_ridge_head
from fastft.train.step import Step
from fastft.train.step_state import init_optimizer_state

PROBE = "probe"
MOST_IMAGES = 100_000  # features of 1,024 values take 400 MB; a longer training learns its head anyway


def share_head(step: Step) -> None:
    """Copy the new weights to the EMA; give the optimiser its state of step 0, which is saved."""
    if step.ema is not None:
        step.ema.module.load_state_dict(step.model.state_dict())
    init_optimizer_state(step.optimizer)


def refuse_large(recipe: Recipe, images: int) -> None:
    """Raise UserError if the recipe asks for ridge regression on too many images."""
    if recipe.model.head_init == PROBE and images > MOST_IMAGES:
        raise UserError(
            f"model.head_init is probe, but {images:,} training images are more than {MOST_IMAGES:,}, which it is meant for; "
            "set --model.head_init=small"
        )


def set_probe_head(
    model: ImageClassifier, recipe: Recipe, world: World, precision: Precision, batch: int, guard: SignalGuard
) -> dict[str, Any]:
    """Replace the head of `model` by ridge regression on its pooled features of the training images.

    The images are seen as in evaluation. The head is the same in all processes. batch: images per forward pass. Returns for
    the log: images, penalty and scale of `fit_ridge_head`.

    Raises:
        EvaluationStopped: in every process, if a stop was requested in one of them.
    """
    r, output = recipe, Output(recipe.model.image_size, world.device, precision.dtype)
    with EvalLoader(
        str(r.data.train), build_policy(r), output, batch_size=batch,
        shard=Shard(world.rank, world.size), workers=r.data.workers or None, on_wait=guard.check,
    ) as loader:  # fmt: skip
        features_ND, labels_N = pooled_features(model, loader, world, precision, guard.is_stop_requested)
    head = fit_ridge_head(features_ND, labels_N, r.data.num_classes, r.train.seed) if world.is_main else None
    head = world.broadcast(head)
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(head.weight_KD))
        model.head.bias.copy_(torch.from_numpy(head.bias_K))
    return {"images": len(labels_N), "penalty": head.penalty, "scale": head.scale}


@torch.inference_mode()
def pooled_features(
    model: ImageClassifier, loader: EvalLoader, world: World, precision: Precision, stop: Callable[[], bool]
) -> tuple[np.ndarray, np.ndarray]:
    """(float32 (N, D), int64 (N,)): the head's input for every image of the loader's file, and its label."""
    rows = []
    for batch, (features_BD,) in forward([model], loader, world, precision, stop, "pooled"):
        rows.append(torch.cat([batch.labels[:, None].float(), features_BD], dim=1))
    mine = torch.cat(rows) if rows else torch.empty(0, 1, device=world.device)
    table = world.gather_rows(mine).cpu().numpy()
    return table[:, 1:], table[:, 0].astype(np.int64)
