"""`fastft sweep TABLE ...`."""

import argparse
from pathlib import Path

from beton_tools.base.console import make_console
from fastft.cli.arguments import recipe_reference
from fastft.recipe.recipe_file import open_sweep

EXAMPLE = (
    "fastft sweep 05_llrd --data.train=in1k/train.beton --data.val=in1k/val.beton\n  fastft cost 05_llrd --gpu a100"
)
TAKES_OPTIONS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    tables = "table files (rcp/tables/05_llrd.yaml, or 05_llrd), or one row: 02_lr[1e-5]"
    add("sweeps", metavar="TABLE", type=recipe_reference, nargs="+", help=tables)
    add("--out", type=Path, default=Path("runs/sweeps"), help="runs and tables (default runs/sweeps)")


def run(args: argparse.Namespace) -> int:
    from fastft.jobs.sweep import run_sweeps

    outcomes = run_sweeps(list(map(open_sweep, args.sweeps)), args.overrides, args.out, make_console())
    return int(any(outcome.error for outcome in outcomes))
