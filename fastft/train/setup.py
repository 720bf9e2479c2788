"""The parts of a training that depend on its data: micro-batch and loaders."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from fastft.augment.recipe_policy import build_policy
from fastft.cost.work import phase_flops
from fastft.data import EvalLoader, Output, Shard, TrainLoader
from fastft.data.classes import refuse_other_classes
from fastft.data.engine import Engine
from fastft.data.stage import check_shrink
from fastft.model import ImageClassifier
from fastft.model.head_file import read_head
from fastft.model.phases import find_phases, with_phase
from fastft.recipe import Recipe
from fastft.train.distributed import World
from fastft.train.micro_batch import choose_micro_batch, loader_bytes
from fastft.train.precision import Precision
from fastft.train.run_phases import RunPhase, RunPhases


def loader_bytes_per_image(recipe: Recipe, precision: Precision, train_files: BetonSet) -> float:
    """GPU memory of the loaders per image of a micro-batch."""
    val = recipe.data.val
    pixels = [b.largest.mean_pixels for b in (train_files, *([] if val is None else [BetonSet.open(val)]))]
    size, batches = recipe.model.image_size, Engine.slots(recipe.data.batches_ahead)
    return sum(loader_bytes(mean, size, precision.dtype, batches) for mean in pixels)


def fit_micro_batch(
    recipe: Recipe, model: ImageClassifier, world: World, precision: Precision, per_image: float, unit: int
) -> int:
    """Images per forward pass of a process, a divisor of its share of the batch.

    per_image: `loader_bytes_per_image`. unit: images that must stay together.

    Raises:
        UserError: as `choose_micro_batch`.
    """
    size, rank_batch = recipe.model.image_size, max(1, recipe.optim.batch_size // world.size)
    return choose_micro_batch(
        recipe.train.micro_batch, rank_batch, model, size, precision, unit=unit, loader_bytes=per_image
    )


def plan_phases(
    recipe: Recipe,
    model: ImageClassifier,
    world: World,
    precision: Precision,
    train_files: BetonSet,
    unit: int,
) -> RunPhases:
    """The phases of a recipe, each with the micro-batch that fits. unit: images that must stay together.

    Raises:
        UserError: as `find_phases` and `fit_micro_batch`.
    """
    arch, phases = model.visual.arch, []
    for phase in find_phases(recipe, arch):
        constant = with_phase(recipe, phase)
        model.visual.patch_dropout.rate = phase.patch_dropout
        per_image = loader_bytes_per_image(constant, precision, train_files)
        micro_batch = fit_micro_batch(constant, model, world, precision, per_image, unit)
        found = RunPhase(
            **asdict(phase),
            micro_batch=micro_batch,
            accumulation=max(1, recipe.optim.batch_size // world.size) // micro_batch,
            flops=phase_flops(recipe, arch, phase).train,
            loader_bytes=micro_batch * per_image,
        )
        phases.append(found)
    return RunPhases(phases)


def refuse_other_head(recipe: Recipe, class_names: Sequence[str]) -> None:
    """Raise UserError if the classes of `model.head` are not those of the training file."""
    if recipe.model.head is None:
        return
    path = Path(recipe.model.head).expanduser()
    try:
        refuse_other_classes(class_names, read_head(path).classes, str(recipe.data.train))
    except UserError as error:
        raise UserError(f"model.head {path} is of other classes: {error}") from None


def refuse_other_val_classes(recipe: Recipe, train_files: BetonSet) -> None:
    """Refuse a `data.val` with other classes than `data.train`, before weights are fetched.

    Raises:
        UserError: the first class that differs.
    """
    if recipe.data.val is not None:
        val = BetonSet.open(recipe.data.val)
        refuse_other_classes(val.class_names, train_files.class_names, recipe.data.val)


def open_loaders(
    recipe: Recipe,
    world: World,
    precision: Precision,
    phases: RunPhases,
    train_files: BetonSet,
    opened: ExitStack,
    on_wait: Callable[[], None],
) -> tuple[TrainLoader, EvalLoader | None]:
    """The loaders of the training files, in the first phase, and of the validation files if there are any.

    They are closed with `opened`. Evaluation is at the final image size.

    on_wait: called while a batch is waited for.

    Raises:
        UserError: a file does not fit the recipe, or the validation files have other classes.
    """
    r = recipe
    output, policy = Output(r.model.image_size, world.device, precision.dtype), build_policy(r)
    first = phases.all[0]
    common: dict[str, Any] = {
        "shard": Shard(world.rank, world.size),
        "workers": r.data.workers or None,
        "batches_ahead": r.data.batches_ahead,
        "on_wait": on_wait,
    }
    loader: TrainLoader = opened.enter_context(TrainLoader(
        train_files, policy, replace(output, size=first.size), seed=r.train.seed, batch_size=r.optim.batch_size,
        micro_batch=first.micro_batch, order=r.data.order, block_mib=r.data.block_mib, **common,
    ))  # fmt: skip
    for phase in phases.all:
        check_shrink(loader.betons, world.device, phase.size)
    if loader.num_classes > r.data.num_classes:
        raise UserError(
            f"{r.data.train} has {loader.num_classes} classes, the recipe {r.data.num_classes}; "
            f"set --data.num_classes={loader.num_classes}"
        )
    if r.data.val is None:
        return loader, None
    eval_loader: EvalLoader = opened.enter_context(
        EvalLoader(
            r.data.val,
            policy,
            output,
            batch_size=phases.smallest_micro_batch,
            crop_pct=r.train.eval_crop_pct,
            **common,
        )
    )
    return loader, eval_loader
