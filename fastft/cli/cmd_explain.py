"""`fastft explain RECIPE`, `fastft explain --diff A B`."""

import argparse
import json
from typing import Any

from beton_tools.base.console import make_console
from fastft.cli.arguments import add_recipe, add_shared, recipe_reference, show, whole_number
from fastft.recipe import Recipe, load_recipe

HELP = "show what a recipe will do and cost, or how two recipes differ, without data, weights or GPU"
EXAMPLE = "fastft explain final_b16 --at-step 6249 --json\n  fastft explain --diff final_b16 frugal_b16"
TAKES_OPTIONS = True
SMALL = 4  # hours on one A100, up to which the cost is shown for one GPU


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_recipe(parser)
    add_shared(parser, "json")
    add("--verbose", action="store_true", help="also print every option, parameter group and learning rate")
    add("--at-step", type=whole_number, metavar="N", help="also show every group's lr at optimiser step N")
    diff = "show how RECIPE differs from recipe A; recipe options apply to RECIPE"
    add("--diff", metavar="A", type=recipe_reference, help=diff)


def run(args: argparse.Namespace) -> int:
    return _explain(args) if args.diff is None else _compare(args)


def _explain(args: argparse.Namespace) -> int:
    from fastft.cli.printing import print_explanation
    from fastft.cost.explanation import explain
    from fastft.photos.counts import list_images

    recipe, warnings = list_images(load_recipe(args.recipe, args.overrides))
    values = explain(recipe, args.at_step, warnings)
    if args.json:
        print(json.dumps(values, indent=1))
    else:
        gpus, cost = _gpus_and_cost(recipe, values["cost"])
        print_explanation(values | {"cost": cost}, make_console(), gpus, args.verbose)
    return 0


def _gpus_and_cost(recipe: Recipe, cost: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """(1, the cost on one GPU) for a small recipe, else (8, the cost on eight)."""
    from fastft.cost.price import MACHINE_GPUS, predict

    on_one = predict(recipe, cost["assumptions"], gpus=1)
    hours = on_one["A100"]["hours"]
    small = hours is not None and hours <= SMALL
    return (1, cost | {"assumptions": on_one}) if small else (MACHINE_GPUS, cost)


def _compare(args: argparse.Namespace) -> int:
    from fastft.cli.printing import print_comparison
    from fastft.cost.explanation import compare
    from fastft.photos.counts import count_images

    first = count_images(load_recipe(args.diff, ()))
    second = count_images(load_recipe(args.recipe, args.overrides))
    return show(compare(first, second), args.json, print_comparison)
