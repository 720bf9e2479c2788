"""Explain and price recipes from their files alone, without data, weights or GPU: one recipe, or all of fastft's."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from fastft.augment.describe import describe_policy
from fastft.augment.recipe_policy import build_policy
from fastft.cost.price import MACHINE_GPUS, predict
from fastft.cost.work import recipe_flops, recipe_work
from fastft.machine.gpus import GPUS, MAIN_GPUS
from fastft.model import TowerArch
from fastft.model.recipe_model import build_model, recipe_arch
from fastft.optim import layer_groups
from fastft.optim.ema import ema_warnings
from fastft.optim.schedule import build_schedule
from fastft.recipe import Recipe, load_recipe
from fastft.recipe.constants import TIMM
from fastft.recipe.recipe_file import TABLES, recipe_names
from fastft.recipe.tables import load_sweep
from fastft.recipe.training_images import describe_expectation, expected_top1, val_images_row


def explain(recipe: Recipe, warnings: Sequence[str] = (), val_images: int | None = None) -> dict[str, Any]:
    """Return the resolved recipe and its cost, as plain values for JSON.

    Args:
        warnings: warnings about the recipe's images. They come before the warnings about its options.
        val_images: number of validation images; None uses an assumed number.

    Returns:
        A dict with these keys: recipe, choices (option, value and reason for every `auto` option), warnings, groups,
        schedule (steps_per_epoch, total_steps, lr_by_epoch), augment, cost, expected_top1 (None without an
        expectation), expectation (in words, or why there is none), gpus (the number of GPUs that the cost is for).

    Raises:
        UserError: the architecture is unknown, the image size does not fit it, or there are fewer images than one
            batch.
    """
    arch = recipe_arch(recipe)
    with torch.device("meta"):
        model = build_model(recipe, pretrained=False)
    a, more = recipe.augment, []
    if a.mixes:
        more = [f"mixup alpha {a.mixup:g}, cutmix alpha {a.cutmix:g}, probability {a.mix_prob:g}"]
    groups = layer_groups(model, arch.layers, recipe.optim.layer_decay, recipe.optim.weight_decay)
    steps = recipe.steps_per_epoch()
    schedule = build_schedule(recipe, steps)
    return {
        "recipe": {"name": recipe.name, **recipe.as_dict()},
        "choices": [asdict(choice) for choice in recipe.choices],
        "warnings": [*warnings, *ema_warnings(recipe)],
        "groups": [
            {"layer_id": g.layer_id, "lr_scale": g.lr_scale, "weight_decay": g.weight_decay, "parameters": g.parameters}
            for g in groups
        ],
        "trainable_parameters": sum(g.parameters for g in groups),
        "schedule": {
            "steps_per_epoch": steps,
            "total_steps": recipe.epochs * steps,
            "lr_by_epoch": [schedule(epoch * steps) for epoch in range(recipe.epochs)],
        },
        "augment": describe_policy(build_policy(recipe), recipe.model.image_size) + more,
        "cost": _cost(recipe, arch, val_images),
        "expected_top1": expected_top1(recipe),
        "expectation": describe_expectation(recipe),
        "gpus": MACHINE_GPUS,
    }


def _cost(recipe: Recipe, arch: TowerArch, val_images: int | None) -> dict[str, Any]:
    row = val_images_row(recipe, val_images)
    return {
        "forward_flops_per_image": recipe_flops(recipe, arch).forward,
        "train_flops_per_image": recipe_flops(recipe, arch).train,
        "total_flops": recipe_work(recipe, arch, row["value"]).total,
        **predicted_cost(recipe, MACHINE_GPUS, val_images),
        "val_images": row,
        "modelled": True,
    }


def predicted_cost(recipe: Recipe, gpus: int, val_images: int | None) -> dict[str, Any]:
    """Return GPU-hours, their range and the assumptions by GPU kind, on `gpus` GPUs."""
    predicted = predict(recipe, GPUS, gpus, val_images)
    return {**_hours(predicted), "assumptions": predicted}


def _hours(predicted: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the hours by GPU kind, at the MFU of tuned runs and at each family's MFU."""
    return {
        "gpu_hours": {name: p["hours"] for name, p in predicted.items()},
        "gpu_hours_range": {name: p["hours_range"] for name, p in predicted.items()},
    }


# fastft recipes

PAPER, CHEAPER, NOT_RUN, PHOTOGRAPHS = GROUPS = ("paper", "cheaper", "not run", "photographs")


def list_recipes(timm: bool = False) -> dict[str, Any]:
    """List the recipes by group, the most expensive first, as plain values for JSON.

    Returns:
        A dict with these keys: recipes (name, group, what, arch, image_size, epochs, expected_top1, expectation,
        gpu_hours and gpu_hours_range by GPU kind), tables (name, title, source, rows). The hours are None for recipes
        for photographs. They are also None for timm's towers unless `timm` is set, because importing timm takes
        seconds.
    """
    tables = [load_sweep(path) for path in sorted(TABLES.glob("*.yaml"))]
    recipes = [(recipe, _group(recipe)) for recipe in map(load_recipe, recipe_names())]
    listed: list[dict[str, Any]] = [
        {
            "name": recipe.name,
            "group": group,
            "what": _what(recipe),
            "arch": recipe.model.arch,
            "image_size": recipe.model.image_size,
            "epochs": recipe.epochs,
            "expected_top1": expected_top1(recipe),
            "expectation": describe_expectation(recipe),
            **(
                dict.fromkeys(("gpu_hours", "gpu_hours_range"), dict.fromkeys(MAIN_GPUS))
                if group == PHOTOGRAPHS or (recipe.model.arch.startswith(TIMM) and not timm)
                else _hours(predict(recipe))
            ),
        }
        for recipe, group in recipes
    ]
    listed.sort(key=lambda r: (GROUPS.index(r["group"]), -(r["gpu_hours"]["V100"] or 0)))
    return {
        "recipes": listed,
        "tables": [{"name": t.name, "title": t.title, "source": t.source, "rows": len(t.rows)} for t in tables],
    }


def _group(recipe: Recipe) -> str:
    if recipe.automatic:
        return PHOTOGRAPHS
    if recipe.about.top1 is None:
        return NOT_RUN
    return PAPER if str(recipe.about.source).startswith("paper") else CHEAPER


def _what(recipe: Recipe) -> str:
    """Describe the recipe in a few words."""
    if recipe.automatic:
        return "settings follow from the images"
    if recipe.epochs == 0:
        return "linear head on the frozen tower"
    whole, trained = recipe.schedule.epochs, recipe.model.trainable_layers
    words = [] if trained is None else [f"last {trained} blocks"]
    # importing timm to count its towers' blocks takes seconds
    if trained is not None and not recipe.model.arch.startswith(TIMM) and 2 * trained == recipe_arch(recipe).layers:
        words = ["half frozen"]
    words.append(f"{recipe.epochs} epochs" if recipe.epochs == whole else f"{recipe.epochs} of {whole} epochs")
    return ", ".join(words + ["fitted head"] * (recipe.model.head_init == "probe"))
