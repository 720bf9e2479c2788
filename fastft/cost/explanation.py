"""Explain and price recipes from their files alone, without data, weights or GPU: one recipe, or all of fastft's."""

from collections.abc import Sequence

import torch

from beton_tools.base.console import counted
from beton_tools.base.typed_json import UNSET, Document, Object, Unset
from fastft.augment.describe import describe_policy
from fastft.augment.recipe_policy import build_policy
from fastft.cost.overheads import Assumption, val_images_row
from fastft.cost.price import MACHINE_GPUS, Predicted, predict
from fastft.cost.work import recipe_flops, recipe_work
from fastft.machine.gpus import GPUS, MAIN_GPUS
from fastft.model.recipe_model import build_model, recipe_arch
from fastft.optim import layer_groups
from fastft.optim.ema import ema_warnings
from fastft.optim.schedule import build_schedule, short_run_warnings, small_batch_warnings
from fastft.recipe import AskedRecipe, Choice, Recipe, load_recipe
from fastft.recipe.published import Preprocessing, published_preprocessing
from fastft.recipe.recipe_file import TABLES, recipe_names
from fastft.recipe.tables import load_sweep
from fastft.recipe.training_images import describe_expectation, expected_top1

Hours = dict[str, float | None]  # by GPU kind. None if the recipe's step cannot be counted
HoursRange = dict[str, list[float] | None]


class Group(Document):
    """Parameters that are updated alike."""

    layer_id: int
    lr_scale: float
    weight_decay: float
    parameters: int


class Schedule(Document):
    """The steps, and the learning rate at each epoch's start."""

    steps_per_epoch: int
    total_steps: int
    lr_by_epoch: list[float]


class Cost(Document):
    """FLOPs and GPU-hours. The hours are given at the middle MFU to plan with, and as a range from fastest to slowest."""

    forward_flops_per_image: float
    train_flops_per_image: float
    total_flops: float
    gpu_hours: Hours
    gpu_hours_range: HoursRange
    assumptions: dict[str, Predicted]
    val_images: Assumption
    modelled: bool = True


class Explanation(Document):
    """The output of `fastft explain --json`.

    Attributes:
        recipe: name, and section -> option -> value.
        images: image settings published with the weights. The recipe's options may change them.
        choices: each `auto` option's value, and the reason for it.
        expected_top1: None without an expectation.
        expectation: the expected accuracy in words, or why there is none.
        gpus: how many GPUs the cost is for.
        here: the time on this machine, in words, if one GPU trains the recipe in hours.
    """

    recipe: Object
    choices: list[Choice]
    warnings: list[str]
    groups: list[Group]
    trainable_parameters: int
    schedule: Schedule
    augment: list[str]
    images: Preprocessing
    cost: Cost
    expected_top1: float | None
    expectation: str
    gpus: int
    here: str | Unset = UNSET


def explain(recipe: AskedRecipe, warnings: Sequence[str] = (), val_images: int | None = None) -> Explanation:
    """Return the resolved recipe and its cost.

    Args:
        warnings: warnings about the recipe's images. They come before the warnings about its options.
        val_images: number of validation images. None uses an assumed number.

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
    return Explanation(
        recipe={"name": recipe.name, **recipe.as_dict()},
        choices=list(recipe.choices),
        warnings=[
            *map(str, warnings),
            *ema_warnings(recipe),
            *short_run_warnings(recipe),
            *small_batch_warnings(recipe, recipe.given | recipe.automatic),
        ],
        groups=[
            Group(layer_id=g.layer_id, lr_scale=g.lr_scale, weight_decay=g.weight_decay, parameters=g.parameters)
            for g in groups
        ],
        trainable_parameters=sum(g.parameters for g in groups),
        schedule=Schedule(
            steps_per_epoch=steps,
            total_steps=recipe.epochs * steps,
            lr_by_epoch=[schedule(epoch * steps) for epoch in range(recipe.epochs)],
        ),
        augment=describe_policy(build_policy(recipe), recipe.model.image_size) + more,
        images=published_preprocessing(recipe.model.arch, recipe.model.weights),
        cost=predict_cost(recipe, MACHINE_GPUS, val_images),
        expected_top1=expected_top1(recipe),
        expectation=describe_expectation(recipe),
        gpus=MACHINE_GPUS,
    )


def predict_cost(recipe: Recipe, gpus: int, val_images: int | None) -> Cost:
    """Predict FLOPs, and GPU-hours on `gpus` GPUs."""
    arch, row = recipe_arch(recipe), val_images_row(recipe, val_images)
    flops = recipe_flops(recipe, arch)
    predicted = predict(recipe, GPUS, gpus, val_images)
    hours, hours_range = _hours(predicted)
    return Cost(
        forward_flops_per_image=flops.forward, train_flops_per_image=flops.train,
        total_flops=recipe_work(recipe, arch, int(row.value)).total, gpu_hours=hours, gpu_hours_range=hours_range,
        assumptions=predicted, val_images=row,
    )  # fmt: skip


def _hours(predicted: dict[str, Predicted]) -> tuple[Hours, HoursRange]:
    """Return hours by GPU kind: at the middle MFU to plan with, and the range from fastest to slowest."""
    return {name: p.hours for name, p in predicted.items()}, {name: p.hours_range for name, p in predicted.items()}


# fastft recipes

PAPER, CHEAPER, NOT_RUN, PHOTOGRAPHS = GROUPS = ("paper", "cheaper", "not run", "photographs")


class ListedRecipe(Document):
    """One of fastft's recipes. group: one of GROUPS. what: a short description."""

    name: str
    group: str
    what: str
    arch: str
    image_size: int
    epochs: int
    expected_top1: float | None
    expectation: str
    gpu_hours: Hours
    gpu_hours_range: HoursRange


class ListedTable(Document):
    """A recipe table."""

    name: str
    title: str
    source: str
    rows: int


class RecipeList(Document):
    """The output of `fastft recipes --json`."""

    recipes: list[ListedRecipe]
    tables: list[ListedTable]


def list_recipes() -> RecipeList:
    """List the recipes by group, the most expensive first.

    Recipes for photographs have no hours (None).
    """
    tables = [load_sweep(path) for path in sorted(TABLES.glob("*.yaml"))]
    listed = [_list_recipe(recipe) for recipe in map(load_recipe, recipe_names())]
    listed.sort(key=lambda r: (GROUPS.index(r.group), -(r.gpu_hours["V100"] or 0)))
    return RecipeList(
        recipes=listed,
        tables=[ListedTable(name=t.name, title=t.title, source=t.source, rows=len(t.rows)) for t in tables],
    )


def _list_recipe(recipe: AskedRecipe) -> ListedRecipe:
    group, hours, hours_range = _group(recipe), Hours.fromkeys(MAIN_GPUS), HoursRange.fromkeys(MAIN_GPUS)
    if group != PHOTOGRAPHS:
        hours, hours_range = _hours(predict(recipe))
    return ListedRecipe(
        name=recipe.name, group=group, what=_what(recipe), arch=recipe.model.arch, image_size=recipe.model.image_size,
        epochs=recipe.epochs, expected_top1=expected_top1(recipe), expectation=describe_expectation(recipe),
        gpu_hours=hours, gpu_hours_range=hours_range,
    )  # fmt: skip


def _group(recipe: AskedRecipe) -> str:
    if recipe.automatic:
        return PHOTOGRAPHS
    if recipe.about.top1 is None:
        return NOT_RUN
    return PAPER if str(recipe.about.source).startswith("paper") else CHEAPER


def _what(recipe: AskedRecipe) -> str:
    """Describe the recipe in a few words."""
    if recipe.automatic:
        return "settings follow from the images"
    if recipe.epochs == 0:
        return "linear probe on the frozen tower"
    whole, trained = recipe.schedule.epochs, recipe.model.trainable_layers
    words = [] if trained is None else [f"last {trained} blocks"]
    if trained is not None and 2 * trained == recipe_arch(recipe).layers:
        words = ["half frozen"]
    words.append(counted(whole, "epochs") if recipe.epochs == whole else f"{recipe.epochs} of {whole} epochs")
    return ", ".join(words + ["fitted head"] * (recipe.model.head_init == "probe"))
