"""A run's third stage: the head that it starts from.

Fine-tuning from a random head distorts pretrained features while the head is learnt. Starting from a linear probe, a
ridge regression on the frozen tower, avoids this (LP-FT, 2202.10054). With `model.head_init=probe` the stage writes the head
(`probe.safetensors`), its scores before training (`baseline.json`), and its predictions for the training images
(`training_labels.json`). If the choosing stage has kept a linear probe at a larger image size (`larger_probe.safetensors`),
this stage scores it too. With `model.head_init=weights` it writes rows from the head in `model.weights` (`head.safetensors`).
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace as replace_fields

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from fastft.data.classes import name_outputs
from fastft.evaluate.linear_probe import FEATURES, FrozenTower, probe_of_run
from fastft.evaluate.scores import KEPT_IN_TRAINING, Evaluated, evaluate
from fastft.head.label_check import judge_labels
from fastft.head.near_copies import warn_of_copies
from fastft.machine.distributed import World
from fastft.model.head_file import head_of_weights, read_head, set_head, write_head
from fastft.model.recipe_model import build_model
from fastft.recipe import FinalRecipe
from fastft.recipe.constants import EVAL_IMAGE_SIZE, FROM_WEIGHTS, IMAGE_SIZE, PROBE
from fastft.run.baseline import Baseline, pack_bits, read_baseline, write_baseline
from fastft.run.checkpoint import list_checkpoints
from fastft.run.evaluations import ByWeights
from fastft.run.inputs import Inputs
from fastft.run.run_directory import HEAD_OF_WEIGHTS, LARGER_HEAD, PROBE_HEAD, run_folder
from fastft.run.said import Say
from fastft.run.training_labels import write_training_labels


def prepare_head(recipe: FinalRecipe, inputs: Inputs, world: World, stop: Callable[[], bool], say: Say) -> None:
    """Write the head that the run starts from, and for a linear probe the baseline.

    Nothing is done if the run has begun to train, has its head already, or starts from a small random head.

    Args:
        recipe: the final recipe.
        stop: ends the stage in all processes once it returns true in one.

    Raises:
        UserError: the features contain NaN or Inf, `model.weights` has no head for these classes, or the disk is full.
        EvaluationStopped: a stop was requested.
    """
    folder, is_there = run_folder(recipe), IS_THERE.get(recipe.model.head_init)
    if is_there is None or world.in_main(
        lambda: bool(list_checkpoints(folder / "checkpoints")) or is_there(folder, inputs.request)
    ):
        return
    if recipe.model.head_init == PROBE:
        _fit_head(recipe, folder, inputs, world, stop, say)
    elif world.is_main:
        _take_head(recipe, folder, inputs, say)


def _is_fitted(folder: Path, request: str) -> bool:
    baseline = read_baseline(folder)
    return baseline is not None and baseline.request == request and (folder / PROBE_HEAD).is_file()


def _is_taken(folder: Path, request: str) -> bool:
    with suppress(UserError):
        return read_head(folder / HEAD_OF_WEIGHTS).source.get("request") == request
    return False


IS_THERE = {PROBE: _is_fitted, FROM_WEIGHTS: _is_taken}


def _take_head(recipe: FinalRecipe, folder: Path, inputs: Inputs, say: Say) -> None:
    """Write the rows that the head in `model.weights` has for the training file's classes."""
    files = inputs.train
    with torch.device("meta"):
        model = build_model(recipe, pretrained=False)
    head, note = head_of_weights(model, recipe, files.known_classes)
    classes = name_outputs(files.class_names, recipe.data.num_classes)
    write_head(
        folder / HEAD_OF_WEIGHTS, replace(head, classes=classes, source=head.source | {"request": inputs.request})
    )
    say(note)


def _fit_head(
    recipe: FinalRecipe, folder: Path, inputs: Inputs, world: World, stop: Callable[[], bool], say: Say
) -> None:
    """Fit and score a linear probe."""
    tower = FrozenTower.build(recipe, world, stop)
    probe = probe_of_run(tower, inputs.train, inputs.units_N, folder, inputs.request, say)
    began = time.monotonic()
    tower.set_head(probe.head)
    scored = [_score(tower, betons) for betons in inputs.evaluated]
    larger = _score_larger(recipe, folder, inputs, probe.images, world, stop)
    if not world.is_main:
        return
    if probe.data is not None and scored:
        for line in warn_of_copies(inputs.train, probe.data.features_ND, inputs.evaluated[0], scored[0][1]):
            say(line)
    write_training_labels(folder, judge_labels(probe))
    head, seconds = probe.head, probe.seconds + time.monotonic() - began
    tower.write_head(head, inputs.train, folder / PROBE_HEAD, request=inputs.request)
    own = [evaluated for evaluated, _ in scored]
    baseline = _describe(probe.images, float(head.penalty), float(head.scale), own, seconds)
    write_baseline(folder, replace_fields(baseline, request=inputs.request, larger=larger))
    (folder / FEATURES).unlink(missing_ok=True)


def _score_larger(
    recipe: FinalRecipe, folder: Path, inputs: Inputs, images: int, world: World, stop: Callable[[], bool]
) -> Baseline | None:
    """Score the linear probe at a larger image size that the time budget has kept.

    None if there is none, if no images can compare it with the trained model, and in other processes than 0.

    images: how many it was fitted to.
    """
    path, request = folder / LARGER_HEAD, inputs.request
    head = world.in_main(lambda: read_head(path) if path.is_file() else None)
    if head is None or head.source.get("request") != request or not inputs.evaluated:
        return None
    began, size = time.monotonic(), int(head.source["image_size"])
    sized = recipe.with_option(IMAGE_SIZE, size).with_option(EVAL_IMAGE_SIZE, None)
    tower = FrozenTower.build(sized, world, stop)
    set_head(tower.model, head, path)
    scored = [_score(tower, betons)[0] for betons in inputs.evaluated]
    if not world.is_main:
        return None
    penalty, scale = (float(head.source[name]) for name in ("penalty", "scale"))
    baseline = _describe(images, penalty, scale, scored, time.monotonic() - began)
    return replace_fields(baseline, image_size=size)


def _describe(images: int, penalty: float, scale: float, scored: Sequence[Evaluated], seconds: float) -> Baseline:
    """Make the baseline.

    scored: scores on the validation images, if there are any, and on the left-out ones.
    """
    first, second = [*scored, None, None][:2]
    compared = second or first
    return Baseline(
        images=images, penalty=penalty, scale=scale, seconds=seconds, raw=None if first is None else first.scores,
        selection=None if second is None else ByWeights(raw=second.scores),
        right="" if compared is None else pack_bits(compared.predictions.right_N),
    )  # fmt: skip


def _score(tower: FrozenTower, betons: BetonSet) -> tuple[Evaluated, np.ndarray]:
    """Return (scores of the tower with its head, all images' features (N, D))."""
    inputs: list[torch.Tensor] = []  # the head's inputs
    with_logits = len(betons) * tower.recipe.data.num_classes <= KEPT_IN_TRAINING
    with (
        tower.open(betons) as loader,
        tower.model.head.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].float())),
    ):
        (scores,) = evaluate([tower.model], loader, tower.world, tower.precision, tower.stop, with_logits)
        mine = torch.cat(inputs)[: len(loader.share)] if inputs else torch.empty(0, 1)
    return scores, tower.world.gather_rows(mine).cpu().numpy()
