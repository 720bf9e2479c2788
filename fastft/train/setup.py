"""The parts of a training that depend on its data: micro-batch and loaders."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from beton_tools.errors import UserError
from beton_tools.format import Beton
from fastft.build import build_policy
from fastft.config import Recipe
from fastft.data import EvalLoader, Output, Shard, TrainLoader
from fastft.data.classes import refuse_other_classes
from fastft.model import Classifier
from fastft.train.distributed import World
from fastft.train.micro_batch import choose_micro_batch, loader_bytes
from fastft.train.precision import Precision


def loader_bytes_per_image(recipe: Recipe, precision: Precision, train_file: Beton) -> float:
    """GPU memory of the loaders per image of a micro-batch."""
    files = [train_file] if recipe.data.val is None else [train_file, Beton.open(recipe.data.val)]
    size, ahead = recipe.model.image_size, recipe.data.batches_ahead
    return sum(loader_bytes(file, size, precision.dtype, ahead) for file in files)


def fit_micro_batch(
    recipe: Recipe, model: Classifier, world: World, precision: Precision, per_image: float, unit: int
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


def open_loaders(
    recipe: Recipe,
    world: World,
    precision: Precision,
    micro_batch: int,
    opened: ExitStack,
    on_wait: Callable[[], None],
) -> tuple[TrainLoader, EvalLoader | None]:
    """The loaders of the training file and, if there is one, the validation file; closed with `opened`.

    on_wait: called while a batch is waited for.

    Raises:
        UserError: a file does not fit the recipe, or the validation file has other classes.
    """
    r = recipe
    output, policy = Output(r.model.image_size, world.device, precision.dtype), build_policy(r)
    common: dict[str, Any] = {
        "shard": Shard(world.rank, world.size),
        "workers": r.data.workers or None,
        "batches_ahead": r.data.batches_ahead,
        "on_wait": on_wait,
    }
    loader: TrainLoader = opened.enter_context(TrainLoader(
        str(r.data.train), policy, output, seed=r.train.seed, batch_size=r.optim.batch_size, micro_batch=micro_batch,
        **common,
    ))  # fmt: skip
    if loader.num_classes > r.data.num_classes:
        raise UserError(
            f"{r.data.train} has {loader.num_classes} classes, the recipe {r.data.num_classes}; "
            f"set --data.num_classes={loader.num_classes}"
        )
    if r.data.val is None:
        return loader, None
    eval_loader: EvalLoader = opened.enter_context(
        EvalLoader(
            r.data.val, policy, output, batch_size=micro_batch, crop_pct=r.train.eval_crop_pct, **common
        )
    )
    refuse_other_classes(eval_loader.class_names, loader.class_names, r.data.val)
    return loader, eval_loader
