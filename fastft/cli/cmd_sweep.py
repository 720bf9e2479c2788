"""`fastft sweep SWEEP.yaml ...`."""

import argparse
from pathlib import Path

from rich.console import Console

HELP = "train or resume every row of a paper table, the paper's numbers beside ours"
EXAMPLE = (
    "fastft sweep rcp/tables/05_llrd/sweep.yaml --data.train=in1k/train.beton --data.val=in1k/val.beton\n"
    "  fastft sweep rcp/tables/*/sweep.yaml --dry-run"
)
TAKES_OPTIONS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sweeps", metavar="SWEEP.yaml", nargs="+", type=Path, help="files that list a table's rows"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what it would cost in GPU-hours, train nothing"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/sweeps"), help="runs and tables (default runs/sweeps)"
    )


def run(args: argparse.Namespace) -> int:
    from fastft import sweep

    sweeps = [sweep.load_sweep(path) for path in args.sweeps]
    if args.dry_run:
        sweep.print_prices(sweep.price_sweeps(sweeps, args.overrides, args.out), Console())
        return 0
    outcomes = sweep.run_sweeps(sweeps, args.overrides, args.out, Console())
    return int(any(outcome.error for outcome in outcomes))
