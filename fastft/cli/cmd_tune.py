"""`fastft tune RECIPE`."""

import argparse
import math
from pathlib import Path

from fastft.cli.arguments import add_recipe

HELP = "search the learning rates of head and tower for your images, within a time budget"
EXAMPLE = "fastft tune mine.yaml --data.train=train.beton --data.val=val.beton --test test.beton --budget 2h"
TAKES_OPTIONS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument(
        "--budget", metavar="TIME", help="time for all trainings, such as 45m or 2h (default: no limit)"
    )
    parser.add_argument(
        "--test", type=Path, metavar="FILE.beton", help="images to evaluate once, after the choice is made"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="runs and results (default runs/tune-RECIPE)")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from fastft.recipe import parse_duration
    from fastft.search.tune import tune

    budget = math.inf if args.budget is None else parse_duration(args.budget, "--budget")
    tune(args.recipe, args.overrides, args.out, budget=budget, test=args.test, console=Console(markup=False))
    return 0
