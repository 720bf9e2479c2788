"""The head of a run that starts from ridge regression on the frozen tower (`model.head_init=probe`).

Fine-tuning from a random head distorts pretrained features while the head is learnt; starting from a linear probe avoids this
(LP-FT, 2202.10054).
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from beton_tools.base.progress_bar import progress_lines
from fastft.augment.recipe_policy import build_policy
from fastft.data.classes import name_outputs
from fastft.data.loader import EvalLoader
from fastft.data.order import Shard
from fastft.data.stage import Output
from fastft.evaluate.scores import forward, pooled_features
from fastft.machine.distributed import World
from fastft.machine.precision import Precision
from fastft.model import ImageClassifier
from fastft.model.head_file import Head, tower_checksum, write_head
from fastft.run.chosen_weights import PROBE_HEAD
from fastft.run.run_directory import write_choices, write_recipe
from fastft.train.augmentation_choice import HFLIP, TRIED, choose_augmentation
from fastft.train.checkpointing import init_optimizer_state
from fastft.train.near_copies import warn_of_copies
from fastft.train.ridge_head import (
    FOLDS,
    MOST_KEPT,
    SCORED_VALUES,
    Mirrored,
    RidgeHead,
    RidgeSums,
    choose_ridge,
    count_mirrored,
    fit_ridge_head,
)

if TYPE_CHECKING:
    from fastft.train.setup import Setup

MOST_IMAGES = 100_000  # whose features are kept: of 1,024 values they take 400 MB


def start_from_probe(setup: "Setup", say: Callable[[str], None]) -> None:
    """Fit the head of a new run and evaluate it; its copy in the run directory stays. May replace the recipe.

    Raises EvaluationStopped: in every process, if a stop was requested in one of them.
    """
    s, model, began = setup, setup.step.model, time.monotonic()
    if s.probe is None:
        say(f"head: computing the features of {s.loader.num_samples:,} training images")
    baseline, mirrored, features_ND = set_probe_head(s, say)
    inputs: list[torch.Tensor] = []  # of the head, for validation images
    with model.head.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].float())):
        scores = [s.validation.scores([model], loader)[0] for loader in s.validation.loaders]
    s.recipe, lines = choose_augmentation(s, mirrored)
    for line in _warn_of_copies(s, features_ND, inputs) + lines:
        say(line)
    s.loader.set_policy(build_policy(s.recipe))
    if s.step.ema is not None:
        s.step.ema.module.load_state_dict(model.state_dict())
    init_optimizer_state(s.step.optimizer)
    seconds = time.monotonic() - began + (0 if s.probe is None else s.probe.seconds)
    s.progress.baseline = {**baseline, "seconds": seconds}
    s.progress.add_baseline(scores)
    if s.world.is_main:
        classes = name_outputs(s.loader.class_names, s.recipe.data.num_classes)
        tensors = model.head.weight.detach().cpu(), model.head.bias.detach().cpu()
        source = {"weights": s.recipe.model.weights, "tower": tower_checksum(model)}
        write_head(s.folder / PROBE_HEAD, Head(*tensors, classes, model.pool, source))
        write_recipe(s.folder, s.recipe)
        write_choices(s.folder, s.recipe)


def _warn_of_copies(setup: "Setup", features_ND: np.ndarray | None, inputs: list[torch.Tensor]) -> list[str]:
    """`warn_of_copies` in process 0, for the first validation loader. inputs: of the head, in this process's batches."""
    loader = setup.validation.loader
    if features_ND is None or loader is None:
        return []
    mine = torch.cat(inputs)[: len(loader.share)] if inputs else torch.empty(0, 1)
    val_ND = setup.world.gather_rows(mine).cpu().numpy()
    return warn_of_copies(setup.loader.betons, features_ND, loader.betons, val_ND) if setup.world.is_main else []


def set_probe_head(
    setup: "Setup", say: Callable[[str], None]
) -> tuple[dict[str, Any], Mirrored | None, np.ndarray | None]:
    """Replace the head of the set-up's model by ridge regression on its pooled features of the training images.

    The images are seen as in evaluation. The head is the same in all processes. Returns for the log images, penalty
    and scale of `fit_ridge_head`; and how it recognises mirrored images, if the recipe leaves `augment.hflip` to it. Raises
    EvaluationStopped: in every process, if a stop was requested in one of them.
    """
    s, r, model = setup, setup.recipe, setup.step.model
    output, batch = Output(r.model.image_size, s.world.device, s.precision.dtype), s.micro_batches.size
    tries_mirrored = HFLIP in r.automatic and not r.data.multi_label
    open_images = partial(
        EvalLoader, s.loader.betons, build_policy(r), output, batch_size=batch,
        shard=Shard(s.world.rank, s.world.size), workers=r.data.workers or None,
    )  # fmt: skip
    with open_images() as loader, progress_lines("head", say, "images") as show:
        images, head, mirrored, features_ND, batches = loader.num_samples, None, None, None, count()
        tried_M = np.sort(np.random.default_rng(r.train.seed).permutation(images)[: TRIED if tries_mirrored else 0])
        total = images * (s.probe is None) + len(tried_M)

        def stop() -> bool:
            show(min(total, next(batches) * batch * s.world.size), total, 0)
            return s.guard.is_stop_requested()

        if images > MOST_IMAGES and not r.data.multi_label:
            head = _fit_in_one_pass(model, loader, s.world, s.precision, r.train.seed, stop)
        else:
            if s.probe is None:
                features_ND, labels_N = pooled_features(model, loader, s.world, s.precision, stop)
            else:
                features_ND, labels_N = s.probe.features_ND, s.probe.labels_N
            mirrored_MD, fit = None, (labels_N, r.data.num_classes, r.train.seed)
            if tries_mirrored:
                with open_images(indices=tried_M) as some:
                    flipped = (replace(b, images=b.images.flip(-1)) for b in some)
                    mirrored_MD, _ = pooled_features(model, flipped, s.world, s.precision, stop)
            show(total, total, 0)
            if s.world.is_main:
                head = fit_ridge_head(features_ND, *fit) if s.probe is None else s.probe.head
                if mirrored_MD is not None:
                    mirrored = count_mirrored(features_ND, mirrored_MD, tried_M, head.penalty, *fit)
    head, mirrored = s.world.broadcast(None if head is None else (head, mirrored))
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(head.weight_KD))
        model.head.bias.copy_(torch.from_numpy(head.bias_K))
    return {"images": images, "penalty": head.penalty, "scale": head.scale}, mirrored, features_ND


@torch.inference_mode()
def _fit_in_one_pass(
    model: ImageClassifier, loader: EvalLoader, world: World, precision: Precision, seed: int, stop: Callable[[], bool]
) -> RidgeHead:
    """The head of many images, of which only sums of width x width and classes x width values are kept, in float64.

    Penalty and scale are chosen on some images whose features are kept, by the sums of the others; the head is of all images.
    """
    classes, width = model.head.weight.shape
    kept = min(MOST_KEPT, SCORED_VALUES // classes, loader.num_samples // FOLDS)
    is_kept_N = np.random.default_rng(seed).permutation(loader.num_samples) < max(1, kept)
    sums, rows = RidgeSums(classes, width, world.device), []
    for batch, (features_BD,) in forward([model], loader, world, precision, stop, "pooled"):
        is_kept_B = torch.from_numpy(is_kept_N[batch.ids]).to(world.device)
        sums.add(features_BD[~is_kept_B], batch.labels[~is_kept_B])
        rows.append(torch.cat([batch.labels[is_kept_B, None].float(), features_BD[is_kept_B]], dim=1))
    table = world.gather_rows(torch.cat(rows) if rows else torch.empty(0, 1)).cpu()
    for summed in sums.parts:
        world.sum(summed)
    features_HD, labels_H = table[:, 1:], table[:, 0].long()
    ridge = choose_ridge([sums.moments()], [(features_HD.numpy(), labels_H.numpy())], classes)
    sums.add(features_HD.to(world.device), labels_H.to(world.device))
    return ridge.head(sums.moments())
