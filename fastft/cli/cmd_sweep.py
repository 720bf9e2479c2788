"""`fastft sweep TABLE ...`."""

import argparse
from pathlib import Path

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

    sweeps = [sweep.open_sweep(name) for name in args.sweeps]
    if args.dry_run:
        sweep.print_prices(sweep.price_sweeps(sweeps, args.overrides, args.out), Console(markup=False))
        return 0
    outcomes = sweep.run_sweeps(sweeps, args.overrides, args.out, Console(markup=False))
    return int(any(outcome.error for outcome in outcomes))
