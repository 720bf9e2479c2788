"""`fastft sweep` and `fastft tune`: many trainings."""

import argparse
import math
from pathlib import Path

from beton_tools.base.console import make_console
from fastft.cli.arguments import add_recipe, recipe_reference
from fastft.recipe import parse_duration
from fastft.recipe.recipe_file import open_sweep


class Sweep:
    """`fastft sweep TABLE ...`."""

    EXAMPLE = (
        "fastft sweep 05_llrd --data.train=in1k/train.beton --data.val=in1k/val.beton\n  fastft cost 05_llrd --gpu a100"
    )
    TAKES_OPTIONS = True

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        tables = "table files (rcp/tables/05_llrd.yaml, or 05_llrd), or one row: 02_lr[1e-5]"
        add("sweeps", metavar="TABLE", type=recipe_reference, nargs="+", help=tables)
        add("--out", type=Path, default=Path("runs/sweeps"), help="runs and tables (default runs/sweeps)")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        from fastft.search.sweep import run_sweeps

        outcomes = run_sweeps(list(map(open_sweep, args.sweeps)), args.overrides, args.out, make_console())
        return int(any(outcome.error for outcome in outcomes))


class Tune:
    """`fastft tune RECIPE`."""

    EXAMPLE = "fastft tune mine.yaml --data.train=train.beton --data.val=val.beton --test test.beton --budget 2h"
    TAKES_OPTIONS = True

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add_recipe(parser)
        add("--budget", metavar="TIME", help="time for all trainings, such as 45m or 2h (default: no limit)")
        add("--test", type=Path, metavar="FILE.beton", help="images to evaluate once, after the choice is made")
        add("--out", type=Path, metavar="DIR", help="runs and results (default runs/tune-RECIPE)")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        from fastft.search.tune import tune

        budget = math.inf if args.budget is None else parse_duration(args.budget, "--budget")
        console = make_console()
        tune(args.recipe, args.overrides, args.out, budget=budget, test=args.test, console=console)
        return 0
