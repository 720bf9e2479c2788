"""`fastft explain`: what a recipe will do and cost, from the recipe alone, without data, weights or GPU."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from beton_tools.base.errors import UserError
from fastft.augment import describe_policy
from fastft.augment.recipe_policy import build_policy
from fastft.cost.model import predict
from fastft.cost.work import phase_flops, recipe_flops, recipe_work
from fastft.model import TowerArch
from fastft.model.phases import find_phases
from fastft.model.recipe_model import build_model, recipe_arch
from fastft.optim import Group, WarmupCosine, layer_groups
from fastft.optim.schedule import build_schedule, recipe_warnings
from fastft.recipe import Recipe, describe_choice
from fastft.recipe.imagenet import describe_expectation, expected_top1, val_images_row

# the MFUs of `fastft.cost.mfu` that the table shows
LISTED_LRS = 100  # at most; --json has those of all epochs
MFU_TITLES = {"published": "published ViT", "roofline": "roofline", "reference": "paper's run"}


def explain(recipe: Recipe, at_step: int | None = None, warnings: Sequence[str] = ()) -> dict[str, Any]:
    """The resolved recipe, as plain values for JSON.

    warnings: about its images, put before those about its options.

    Keys: recipe, choices (option, value, reason of every `auto` option), warnings, groups, schedule (steps_per_epoch,
    total_steps, lr_by_epoch, lr_at_step), phases, augment, cost, expected_top1 (None without an expectation), expectation (in
    words, or why there is none).

    Raises:
        UserError: unknown architecture or one that the image size does not fit, fewer images than one batch, or no such step.
    """
    last = recipe.epochs * recipe.steps_per_epoch() - 1
    if at_step is not None and at_step > last:
        raise UserError(f"there is no step {at_step}; the recipe has steps 0 to {last}")
    arch = recipe_arch(recipe)
    with torch.device("meta"):
        model = build_model(recipe, pretrained=False)
    groups = layer_groups(model, arch.layers, recipe.optim.layer_decay, recipe.optim.weight_decay)
    schedule = build_schedule(recipe, recipe.steps_per_epoch())
    return {
        "recipe": {"name": recipe.name, **recipe.as_dict()},
        "choices": [asdict(choice) for choice in recipe.choices],
        "warnings": [*warnings, *recipe_warnings(recipe)],
        "groups": [_group(g, schedule, at_step) for g in groups],
        "trainable_parameters": sum(g.parameters for g in groups),
        "schedule": _schedule(recipe, schedule, groups, at_step),
        "phases": _phases(recipe, arch),
        "augment": describe_policy(build_policy(recipe), recipe.model.image_size) + _mixing(recipe),
        "cost": _cost(recipe, arch),
        "expected_top1": expected_top1(recipe),
        "expectation": describe_expectation(recipe),
    }


def _group(group: Group, schedule: WarmupCosine, at_step: int | None) -> dict[str, Any]:
    entry = {
        "layer_id": group.layer_id,
        "lr_scale": group.lr_scale,
        "weight_decay": group.weight_decay,
        "parameters": group.parameters,
    }
    if at_step is not None:
        entry["lr"] = schedule(at_step) * group.lr_scale
    return entry


def _schedule(
    recipe: Recipe, schedule: WarmupCosine, groups: list[Group], at_step: int | None
) -> dict[str, Any]:
    steps = recipe.steps_per_epoch()
    values: dict[str, Any] = {
        "steps_per_epoch": steps,
        "total_steps": recipe.epochs * steps,
        "lr_by_epoch": [schedule(epoch * steps) for epoch in range(recipe.epochs)],
    }
    if at_step is not None:
        by_layer = {str(g.layer_id): schedule(at_step) * g.lr_scale for g in groups}
        values["lr_at_step"] = {"step": at_step, "lr": schedule(at_step), "by_layer_id": by_layer}
    return values


def _phases(recipe: Recipe, arch: TowerArch) -> list[dict[str, Any]]:
    """Image size, patch dropout and FLOPs by epochs; one entry without schedules."""
    return [
        {
            "first_epoch": phase.first,
            "epochs": phase.epochs,
            "image_size": phase.size,
            "patch_dropout": phase.patch_dropout,
            "train_flops_per_image": phase_flops(recipe, arch, phase).train,
        }
        for phase in find_phases(recipe, arch)
    ]


def _mixing(recipe: Recipe) -> list[str]:
    a = recipe.augment
    if a.mixup == 0 and a.cutmix == 0:
        return []
    return [f"mixup alpha {a.mixup:g}, cutmix alpha {a.cutmix:g}, probability {a.mix_prob:g}"]


def _cost(recipe: Recipe, arch: TowerArch) -> dict[str, Any]:
    predicted = predict(recipe)
    return {
        "forward_flops_per_image": recipe_flops(recipe, arch).forward,
        "train_flops_per_image": recipe_flops(recipe, arch).train,
        "total_flops": recipe_work(recipe, arch).total,
        "gpu_hours": {name: p["hours"] for name, p in predicted.items()},
        "assumptions": predicted,
        "val_images": val_images_row(recipe),
        "modelled": True,
    }


def print_explanation(values: dict[str, Any], console: Console) -> None:
    recipe, schedule, cost = values["recipe"], values["schedule"], values["cost"]
    console.rule(recipe["name"])
    for section in (s for s in recipe if s not in ("name", "about")):
        shown = ", ".join(f"{k} {_short(v)}" for k, v in recipe[section].items())
        _print_line(section, shown, console)
    _print_choices(values, console)
    console.print(_groups_table(values))
    _print_line("augment", "; ".join(values["augment"]), console)
    lrs = [f"{lr:.3g}" for lr in schedule["lr_by_epoch"]]
    every = -(-len(lrs) // LISTED_LRS)
    of = "each epoch" if every == 1 else f"every {every} epochs"
    steps = f"{schedule['total_steps']:,} steps, {schedule['steps_per_epoch']:,} per epoch"
    _print_line("schedule", f"{steps}; lr at the start of {of}: " + " ".join(lrs[::every]), console)
    if len(values["phases"]) > 1:
        _print_line("phases", "; ".join(map(_phase, values["phases"])), console)
    console.print(_cost_table(cost))
    _print_line("accuracy", values["expectation"], console)


def _print_line(name: str, text: str, console: Console) -> None:
    console.print(Text.assemble((f"{name:<9}", "bold"), " ", text))


def _phase(phase: dict[str, Any]) -> str:
    last = phase["first_epoch"] + phase["epochs"] - 1
    dropped = f", {phase['patch_dropout']:.0%} of the patches dropped" if phase["patch_dropout"] else ""
    flops = f"{phase['train_flops_per_image'] / 1e9:.1f} GFLOP per image"
    return f"epochs {phase['first_epoch']}-{last} {phase['image_size']} px{dropped}, {flops}"


def _print_choices(values: dict[str, Any], console: Console) -> None:
    for choice in values["choices"]:
        console.print(describe_choice(**choice), highlight=False, markup=False)
    for warning in values["warnings"]:
        console.print(f"warning: {warning}", highlight=False, markup=False)


def _groups_table(values: dict[str, Any]) -> Table:
    at_step = values["schedule"].get("lr_at_step")
    table = Table(title=f"{values['trainable_parameters']:,} trainable parameters", title_justify="left")
    columns = ["layer", "lr scale", "weight decay", "parameters"] + (
        [f"lr at step {at_step['step']}"] if at_step else []
    )
    for column in columns:
        table.add_column(column, justify="right")
    for g in values["groups"]:
        row = [str(g["layer_id"]), f"{g['lr_scale']:.6g}", f"{g['weight_decay']:g}", f"{g['parameters']:,}"]
        table.add_row(*row, *([f"{g['lr']:.4g}"] if at_step else []))
    return table


def _cost_table(cost: dict[str, Any]) -> Table:
    gflop, val = cost["train_flops_per_image"] / 1e9, cost["val_images"]
    table = Table(
        title=f"{gflop:.1f} GFLOP per training image; GPU-hours on 8 GPUs, modelled",
        title_justify="left",
        caption=f"{val['what']}: {val['value']:,}; * the loader is the bottleneck, with the cores of a usual cloud machine",
        caption_justify="left",
    )
    table.add_column("GPU")
    for title in MFU_TITLES.values():
        table.add_column(f"{title} MFU", justify="right")
        table.add_column("hours", justify="right")
    for name, predicted in cost["assumptions"].items():
        rows = {row["basis"]: row for row in predicted["estimates"]}
        pairs = [_mfu_and_hours(rows.get(basis)) for basis in MFU_TITLES]
        table.add_row(name, *(cell for pair in pairs for cell in pair))
    return table


def _mfu_and_hours(row: dict[str, Any] | None) -> tuple[str, str]:
    if row is None:
        return "-", "-"
    return f"{row['mfu']:.1%}", f"{row['hours']:.1f}" + ("*" if row["limited_by"] == "loader" else "")


def _short(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(f"{v:.4g}" for v in value) + ")"
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)
