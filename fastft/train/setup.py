"""The parts of a training, built from a recipe: model, micro-batch, loaders, optimiser step."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

import torch

from beton_tools.errors import UserError
from beton_tools.format import Beton
from fastft.build import build_model, build_policy
from fastft.config import Recipe
from fastft.cost.work import phase_flops
from fastft.data import EvalLoader, Output, Shard, TrainLoader
from fastft.data.classes import refuse_other_classes
from fastft.data.loader import check_shrink
from fastft.model import Classifier
from fastft.optim import Ema, build_adamw, decay_for_batch, layer_groups, optimizer_groups
from fastft.phases import find_phases, with_phase
from fastft.train.distributed import World
from fastft.train.micro_batch import choose_micro_batch, loader_bytes
from fastft.train.precision import Precision
from fastft.train.run_phases import RunPhase, RunPhases
from fastft.train.step import Step


def build_training_models(
    recipe: Recipe, device: torch.device, pretrained: bool
) -> tuple[Classifier, Ema | None]:
    """The model on its device, and its EMA if the recipe has one. pretrained=False leaves the weights to a checkpoint."""
    model = build_model(recipe, pretrained=pretrained).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.visual.grad_checkpointing = recipe.train.grad_checkpointing
    options = recipe.ema
    if options.decay == 0:
        return model, None
    decay = decay_for_batch(options.decay, recipe.optim.batch_size, options.reference_batch)
    return model, Ema(model, decay)


def fit_micro_batch(
    recipe: Recipe, model: Classifier, world: World, precision: Precision, train_file: Beton, unit: int
) -> int:
    """Images per forward pass of a process, a divisor of its share of the batch.

    unit: images that must stay together.

    Raises:
        UserError: as `choose_micro_batch`.
    """
    size = recipe.model.image_size
    files = [train_file] if recipe.data.val is None else [train_file, Beton.open(recipe.data.val)]
    per_image = sum(loader_bytes(f, size, precision.dtype, recipe.data.batches_ahead) for f in files)
    rank_batch = max(1, recipe.optim.batch_size // world.size)
    return choose_micro_batch(
        recipe.train.micro_batch, rank_batch, model, size, precision, unit=unit, loader_bytes=per_image
    )


def plan_phases(
    recipe: Recipe, model: Classifier, world: World, precision: Precision, train_file: Beton, unit: int
) -> RunPhases:
    """The phases of a recipe, each with the micro-batch that fits. unit: images that must stay together.

    Raises:
        UserError: as `find_phases` and `fit_micro_batch`.
    """
    arch, phases = model.visual.arch, []
    for phase in find_phases(recipe, arch):
        model.visual.patch_dropout.rate = phase.patch_dropout
        micro_batch = fit_micro_batch(with_phase(recipe, phase), model, world, precision, train_file, unit)
        accumulation = max(1, recipe.optim.batch_size // world.size) // micro_batch
        flops = phase_flops(recipe, arch, phase).train
        phases.append(
            RunPhase(**asdict(phase), micro_batch=micro_batch, accumulation=accumulation, flops=flops)
        )
    return RunPhases(phases)


def open_loaders(
    recipe: Recipe,
    world: World,
    precision: Precision,
    phases: RunPhases,
    opened: ExitStack,
    on_wait: Callable[[], None],
) -> tuple[TrainLoader, EvalLoader | None]:
    """The loaders of the training file, in the first phase, and of the validation file if there is one.

    They are closed with `opened`. Evaluation is at the final image size.

    on_wait: called while a batch is waited for.

    Raises:
        UserError: a file does not fit the recipe, or the validation file has other classes.
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
        str(r.data.train), policy, replace(output, size=first.size), seed=r.train.seed, batch_size=r.optim.batch_size,
        micro_batch=first.micro_batch, **common,
    ))  # fmt: skip
    for phase in phases.all:
        check_shrink(loader.beton, world.device, phase.size)
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
    refuse_other_classes(eval_loader.class_names, loader.class_names, r.data.val)
    return loader, eval_loader


def build_step(
    recipe: Recipe, model: Classifier, ema: Ema | None, world: World, precision: Precision, accumulation: int
) -> Step:
    """The step of AdamW over layer-wise groups."""
    r = recipe
    groups = layer_groups(model, model.visual.arch.layers, r.optim.layer_decay, r.optim.weight_decay)
    optimizer = build_adamw(
        optimizer_groups(model, groups), betas=(r.optim.beta1, r.optim.beta2), eps=r.optim.eps
    )
    return Step(
        model,
        optimizer,
        ema,
        world,
        precision,
        accumulation=accumulation,
        label_smoothing=r.optim.label_smoothing,
        clip_grad=r.optim.clip_grad,
    )
