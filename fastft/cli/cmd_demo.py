"""`fastft demo`."""

import argparse
from pathlib import Path

from beton_tools.base.console import make_console
from fastft.cli.arguments import RECIPE, recipe_reference

EXAMPLE = "fastft demo --out runs/demo"
TAKES_OPTIONS = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--recipe", default="demo", type=recipe_reference, help=f"{RECIPE} (default demo)")
    add(
        "--cache",
        type=Path,
        metavar="DIR",
        default=Path(".cache/demo"),
        help="folder for downloads (default .cache/demo)",
    )
    add("--out", type=Path, default=Path("runs/demo"), help="folder for results (default runs/demo)")


def run(args: argparse.Namespace) -> int:
    from fastft.jobs.demo import run_demo

    run_demo(args.recipe, args.cache, args.out, make_console(lasting=True))
    return 0
