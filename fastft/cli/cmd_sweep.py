"""`fastft sweep TABLE ...`."""

import argparse
from pathlib import Path

from fastft.cli.arguments import recipe_reference

HELP = "train or resume the rows of a paper table, and print the paper's figures beside ours"
EXAMPLE = (
    "fastft sweep 05_llrd --data.train=in1k/train.beton --data.val=in1k/val.beton\n"
    "  fastft sweep rcp/tables/*.yaml --dry-run"
)
TAKES_OPTIONS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sweeps",
        metavar="TABLE",
        type=recipe_reference,
        nargs="+",
        help="table files (rcp/tables/05_llrd.yaml, or 05_llrd), or one row: 02_lr[1e-5]",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the predicted GPU-hours, train nothing")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/sweeps"), help="runs and tables (default runs/sweeps)"
    )


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from fastft import search as sweep
    from fastft.recipe.recipe_file import expand_pattern

    sweeps = [sweep.open_sweep(name) for given in args.sweeps for name in expand_pattern(given)]
    if args.dry_run:
        sweep.print_prices(sweep.price_sweeps(sweeps, args.overrides, args.out), Console(markup=False))
        return 0
    outcomes = sweep.run_sweeps(sweeps, args.overrides, args.out, Console(markup=False))
    return int(any(outcome.error for outcome in outcomes))
