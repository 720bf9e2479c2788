"""`fastft options`: every recipe option with its default, limits, meaning, and value in the paper's runs."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from beton_tools.base.errors import UserError
from fastft.recipe import SECTIONS, load_recipe, nearest_option, option_fields
from fastft.recipe.check import OptionChecker, show_value

# the paper's four models, whose recipes hold the values from its logs
MODELS = {"final_b16": "B/16", "final_b16_384": "B/16-384", "final_l14": "L/14", "final_l14_336": "L/14-336"}
IN_LOGS = ("model", "augment", "optim", "schedule", "ema")  # sections that say how a model is trained


@dataclass(frozen=True)
class OptionInfo:
    """One option, in words."""

    name: str
    default: str
    limits: str
    meaning: str
    paper: str | None  # the value in the paper's runs. None if they do not say


def list_options(selection: str | None = None) -> list[OptionInfo]:
    """List all options, the options in a section, or the options with one name (`optim.lr`, or `lr` in any section).

    Raises:
        UserError: no such section or option (with the nearest one).
    """
    names = list(option_fields())
    if selection in SECTIONS:  # a section comes before options with its name, such as data.train
        names = [name for name in names if name.startswith(f"{selection}.")]
    chosen = [name for name in names if selection in (None, name, *name.split("."))]
    if not chosen:
        near = nearest_option(str(selection), (*option_fields(), *SECTIONS))
        hint = f"Did you mean '{near}'?" if near else f"Sections: {', '.join(SECTIONS)}"
        raise UserError(f"no option or section '{selection}'. {hint}")
    return [_describe(name) for name in chosen]


def _describe(name: str) -> OptionInfo:
    section, _, option = name.partition(".")
    field = option_fields()[name]
    checker = OptionChecker(field, typing.get_type_hints(SECTIONS[section])[option])
    return OptionInfo(
        name, show_value(field.default), checker.help(), field.metadata["help"], _paper_value(name, field)
    )


def _paper_value(name: str, field: dataclasses.Field) -> str | None:
    stated = field.metadata["paper"]
    if stated is not None or name.partition(".")[0] not in IN_LOGS:
        return None if stated is None else str(stated)
    models: dict[str, list[str]] = {}
    for recipe, model in MODELS.items():
        models.setdefault(show_value(_final_values()[recipe][name]), []).append(model)
    if len(models) == 1:
        return next(iter(models))
    return ", ".join(f"{value} ({', '.join(names)})" for value, names in models.items())


@cache
def _final_values() -> Mapping[str, Mapping[str, object]]:
    return {recipe: load_recipe(recipe).flat() for recipe in MODELS}
