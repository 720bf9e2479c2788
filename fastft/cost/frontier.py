"""`fastft cost --frontier`: ways to save on a recipe combined, with cost and expected accuracy, the cheapest first.

Stopping early and freezing lower blocks: the ways whose loss of accuracy the reference's logs and the paper show.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from beton_tools.base.errors import UserError
from fastft.cost.price import FASTFT, MACHINE_GPUS, cores_per_gpu, estimate, known_gpu, with_cores
from fastft.cost.published import reference_of
from fastft.cost.roofline import Mfu, describe_uncounted, known_mfus
from fastft.machine.gpus import GPUS, MAIN_GPUS
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import Recipe, differences, load_recipe, option_fields, recipe_from_dict
from fastft.recipe.training_images import is_imagenet

EVAL_EVERY = 5  # epochs; evaluating every epoch takes 1.3 % of the time of an epoch
# options that the levers set, or that change what the logs show; the recipe's own values of them are left out
SET_BY_LEVERS = {
    "schedule.stop_epoch", "model.trainable_layers", "schedule.sizes", "model.patch_dropout", "train.eval_every",
    "train.eval_weights",
}  # fmt: skip
QUICK_LOSS = 0.2  # points below the best epoch at which the quick recipes stop
STOP_SHARE = 0.6  # of the schedule, where there is no log: as B/16's best epoch, 30 of 50
ROUNDING = 0.005  # points: a top-1 that is shown as 85.66 reaches 85.66
# trained blocks of B/16's 12 -> points lost (paper Figure 3: 85.7, 85.6 and 83.9)
FIGURE_3 = {6: 0.1, 1: 1.8}
FIGURE_3_RECIPE = "final_b16"


@dataclass(frozen=True)
class Freezing:
    """Trained blocks, None for all; loss: points of top-1 that this costs."""

    blocks: int | None
    loss: float
    source: str


@dataclass(frozen=True)
class Combination:
    """A recipe with some levers; expected: top-1 with losses added up, None where it is not known."""

    recipe: Recipe
    levers: tuple[str, ...]
    expected: float | None
    sources: tuple[str, ...]


def combinations(recipe: Recipe, at_least: float | None = None) -> Iterator[Combination]:
    """Every combination of stopping and freezing on a recipe.

    at_least: only those that are expected to reach this top-1, to two decimals, each stopped as early as that allows.
    """
    plain = _without_levers(recipe)
    name, curve = _reference(plain)
    if curve is None and at_least is not None:
        return
    for freezing in _freezings(plain, name):
        for epochs in _stops(plain, curve, freezing.loss, at_least):
            expected = None if curve is None else curve[epochs - 1] - freezing.loss
            sources = [] if curve is None else [f"reference log at epoch {epochs - 1}", freezing.source]
            options = {"schedule.stop_epoch": epochs, "model.trainable_layers": freezing.blocks}
            levers = [f"stop after epoch {epochs}"] if epochs < plain.epochs else []
            if freezing.blocks is not None:
                levers.append(
                    "train the top " + (f"{freezing.blocks} blocks" if freezing.blocks > 1 else "block")
                )
            yield Combination(_with(plain, options), tuple(levers), expected, tuple(filter(None, sources)))


def _without_levers(recipe: Recipe) -> Recipe:
    """The recipe without levers of its own; where it has an EMA only that is evaluated."""
    fresh = {key: field.default for key, field in option_fields().items()}
    options = {key: fresh[key] for key in SET_BY_LEVERS}
    weights = "ema" if recipe.ema.decay > 0 else "both"
    return _with(recipe, options | {"train.eval_every": EVAL_EVERY, "train.eval_weights": weights})


def _with(recipe: Recipe, options: dict[str, Any]) -> Recipe:
    sections = recipe.as_dict()
    for key, value in options.items():
        section, _, option = key.partition(".")
        sections[section][option] = value
    return recipe_from_dict(recipe.name, sections)


def _reference(plain: Recipe) -> tuple[str | None, Sequence[float] | None]:
    """The final recipe that this one is, with the EMA's top-1 after each epoch of its log; None for another training."""
    name, curve = reference_of(plain.model.arch, plain.model.image_size)
    if name is None or curve is None or not is_imagenet(plain):
        return None, None
    counted = {
        key for key, field in option_fields().items() if field.metadata["changes_accuracy"]
    } - SET_BY_LEVERS
    same = counted.isdisjoint(differences(plain, load_recipe(name)))
    return (name, curve["top1_ema"]) if same else (None, None)


def _freezings(plain: Recipe, name: str | None) -> list[Freezing]:
    """No freezing, half of the blocks, and for the model of Figure 3 all but one."""
    layers = recipe_arch(plain).layers
    found = [Freezing(None, 0.0, "")]
    if name == FIGURE_3_RECIPE:
        return found + [Freezing(k, loss, "paper Figure 3") for k, loss in FIGURE_3.items()]
    half = FIGURE_3[6]
    return [*found, Freezing(layers // 2, half, f"{half} points assumed as for B/16 (paper Figure 3)")]


def _stops(plain: Recipe, curve: Sequence[float] | None, lost: float, at_least: float | None) -> list[int]:
    """Numbers of epochs to train: the best and a quick one of the log, or the fewest that reach `at_least`."""
    if curve is None:
        return sorted({max(1, round(STOP_SHARE * plain.epochs)), plain.epochs})
    best = max(curve)
    wanted = [best - QUICK_LOSS, best] if at_least is None else [at_least - ROUNDING + lost]
    return [next(n for n, top1 in enumerate(curve, 1) if top1 >= goal) for goal in wanted if goal <= best]


# cost ---------------------------------------------------------------------------------------------------------------------


def price_combinations(
    recipe: Recipe, gpu: str | None = None, mfu: float | None = None, at_least: float | None = None
) -> dict[str, Any]:
    """Plain values for JSON: recipe, at_least, gpus (names), combinations (levers, options, gpu_hours, expected_top1, sources).

    gpu: one GPU instead of MAIN_GPUS. mfu: instead of the expected one. Sorted by the hours of the first GPU.

    Raises:
        UserError: unknown GPU, a step that cannot be counted, or no combination is expected to reach `at_least`.
    """
    gpus = list(MAIN_GPUS) if gpu is None else [known_gpu(gpu).name]
    rows: list[dict[str, Any]] = [
        {
            "levers": list(found.levers),
            "options": {key: value for key, value in found.recipe.flat().items() if key in SET_BY_LEVERS},
            "gpu_hours": {name: _hours(found.recipe, name, mfu) for name in gpus},
            "expected_top1": found.expected,
            "sources": list(found.sources),
        }
        for found in combinations(recipe, at_least)
    ]
    if not rows:
        known = [found.expected for found in combinations(recipe) if found.expected is not None]
        best = f" (the log's best is {max(known):.2f})" if known else ""
        raise UserError(
            f"nothing shows that {recipe.name} can reach {at_least:g} % top-1{best}; give a lower --at-least"
        )
    rows.sort(key=lambda row: row["gpu_hours"][gpus[0]])
    return {"recipe": recipe.name, "at_least": at_least, "gpus": gpus, "modelled": True, "combinations": rows}


def _hours(recipe: Recipe, name: str, given: float | None) -> float:
    """GPU-hours at the given or the expected MFU."""
    gpu, over = GPUS[name], with_cores(FASTFT, cores_per_gpu(name))
    mfus = known_mfus(recipe, gpu, MACHINE_GPUS) if given is None else [Mfu(given, "given", "--mfu")]
    if not mfus:
        raise UserError(describe_uncounted(recipe, gpu))
    return estimate(recipe, gpu, MACHINE_GPUS, mfus[0], over).gpu_hours
