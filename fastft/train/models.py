"""The model of a training, its EMA and its optimiser step, built from a recipe."""

import torch

from fastft.model import ImageClassifier, TowerArch
from fastft.model.recipe_model import build_model
from fastft.optim import Ema, build_adamw, decay_for_batch, layer_groups, optimizer_groups
from fastft.recipe import Recipe
from fastft.train.distributed import World
from fastft.train.precision import Precision
from fastft.train.step import Step


def build_training_models(
    recipe: Recipe, device: torch.device, pretrained: bool, arch: TowerArch | None = None
) -> tuple[ImageClassifier, Ema | None]:
    """The model on its device, and its EMA if the recipe has one.

    pretrained: False leaves the weights to a checkpoint. arch: None for the one that the recipe names.
    """
    model = build_model(recipe, pretrained=pretrained, arch=arch).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.visual.grad_checkpointing = recipe.train.grad_checkpointing
    options = recipe.ema
    if options.decay == 0:
        return model, None
    decay = decay_for_batch(options.decay, recipe.optim.batch_size, options.reference_batch)
    return model, Ema(model, decay)


def build_step(
    recipe: Recipe,
    model: ImageClassifier,
    ema: Ema | None,
    world: World,
    precision: Precision,
    accumulation: int,
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
