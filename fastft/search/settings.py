"""The settings that are compared: learning rate of the head times learning rate of the middle block.

In the paper's Tables 4 and 5 the best settings span a factor of 12 in the head's learning rate, but less than 3 in that of the
middle blocks: these two axes are nearly independent, lr and layer_decay are not.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from fastft.recipe import Recipe, recipe_from_dict, without_expectation
from fastft.train.augmentation_choice import DECIDED

FACTORS = (Fraction(1, 3), Fraction(1), Fraction(3))
SHARES = (Fraction(6, 50), Fraction(17, 50), Fraction(1))  # of the recipe's epochs that the runs of a rung last
KEPT = (3, 1)  # settings that go on to the next rung
# of a time budget: no training of a rung begins after it. The rungs take about 1, 1 and 2 whole trainings
BUDGET_SHARES = (0.25, 0.5, 1.0)
LARGEST_DECAY = 1.0  # more would train the lower layers faster than the head


@dataclass(frozen=True)
class Setting:
    """Factors on the recipe's learning rates of the head and of the middle block."""

    head: Fraction
    mid: Fraction

    @property
    def title(self) -> str:
        return "recipe" if self == DEFAULT else f"head x{self.head}, middle x{self.mid}"


DEFAULT = Setting(Fraction(1), Fraction(1))


def grid(recipe: Recipe, layers: int) -> list[Setting]:
    """The settings: the recipe's own first, then those with one factor, so that a short budget covers both axes.

    Those that would need a layer_decay above LARGEST_DECAY are left out.
    """
    every = [Setting(head, mid) for mid in reversed(FACTORS) for head in FACTORS]
    allowed = [s for s in every if s == DEFAULT or _layer_decay(recipe, s, layers) <= LARGEST_DECAY]
    return sorted(allowed, key=lambda s: (s.head != 1) + (s.mid != 1))


def mid_exponent(layers: int) -> float:
    """Layers from the head down to the middle of the blocks: its learning rate is lr * layer_decay ** mid_exponent.

    The blocks 1..layers are layers .. 1 below the head; 6.5 for 12 blocks.
    """
    return (layers + 1) / 2


def with_setting(recipe: Recipe, setting: Setting, layers: int) -> Recipe:
    """The recipe with lr and layer_decay of a setting."""
    if setting == DEFAULT:
        return recipe
    lr = _rounded(recipe.optim.lr * float(setting.head))
    changed = {"optim.lr": lr, "optim.layer_decay": _layer_decay(recipe, setting, layers)}
    return without_expectation(_changed(recipe, changed), list(changed))


def _layer_decay(recipe: Recipe, setting: Setting, layers: int) -> float:
    return _rounded(recipe.optim.layer_decay * float(setting.mid / setting.head) ** (1 / mid_exponent(layers)))


def mid_lr(recipe: Recipe, layers: int) -> float:
    return recipe.optim.lr * recipe.optim.layer_decay ** mid_exponent(layers)


def rung_epochs(recipe: Recipe) -> list[int]:
    """Epochs of the runs of each rung; the last are the recipe's own. Several rungs of a short recipe may be equal."""
    return [max(1, round(share * recipe.epochs)) for share in SHARES]


def count_epochs(epochs: int) -> str:
    return f"{epochs} epoch" if epochs == 1 else f"{epochs} epochs"


def shortened(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe as a complete run of `epochs`: warm-up and EMA horizon keep their share; it is evaluated at the end."""
    share, schedule = epochs / recipe.epochs, recipe.schedule
    return _changed(
        recipe,
        {
            "schedule.epochs": max(epochs, round(schedule.epochs * share)),
            "schedule.warmup_epochs": schedule.warmup_epochs * share,
            "schedule.stop_epoch": None if schedule.stop_epoch is None else epochs,
            "ema.decay": recipe.ema.decay ** (1 / share),
            "train.eval_every": epochs,
        },
    )


def _changed(recipe: Recipe, values: Mapping[str, object]) -> Recipe:
    sections = recipe.as_dict()
    for key, value in values.items():
        section, _, option = key.partition(".")
        sections[section][option] = value
    automatic = recipe.automatic & DECIDED  # every training decides about them, as the recipe's would
    return dataclasses.replace(recipe_from_dict(recipe.name, sections), about=recipe.about, automatic=automatic)


def _rounded(value: float) -> float:
    """Four significant digits: what a recipe file shows is what is trained."""
    return float(f"{value:.4g}")
