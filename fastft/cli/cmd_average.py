"""`fastft average MODEL MODEL ...`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from beton_tools.base import torchrun
from beton_tools.base.console import compact_table, print_table, say
from beton_tools.base.errors import UserError
from fastft.cli.arguments import add_shared, print_line, show
from fastft.cli.cmd_eval import figure
from fastft.recipe.constants import SOUPS
from fastft.run.evaluations import SCORE_NAMES, TOP1

if TYPE_CHECKING:
    from rich.console import Console

    from fastft.run.average_record import AverageRecord, FileFigures

EXAMPLE = (
    "fastft average start runs/clip --alpha 0,0.25,0.5,0.75,1 --data val.beton --data sketch.beton --out runs/wise"
)
TAKES_OPTIONS = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    models = "run directories or checkpoints. 'start' stands for the initial weights of the run that follows it"
    parser.add_argument("models", metavar="MODEL", nargs="+", help=models)
    alphas = "with two models: weights to try for the second model, separated by commas (default 0,0.1,...,1)"
    parser.add_argument("--alpha", type=alpha_list, metavar="A,B,...", help=alphas)
    soup = (
        "with several models. uniform: their mean. greedy: starting from the best, "
        "add each model that does not make it worse"
    )
    parser.add_argument("--soup", choices=SOUPS, help=soup)
    data = (
        "validation file on which the average is chosen (default: the recipe's). Repeat the option to evaluate the averages on "
        "more files"
    )
    parser.add_argument("--data", metavar="FILE.beton", type=Path, action="append", default=[], help=data)
    add_shared(parser, "only-present-classes")
    out = "folder for the average and its accuracies. eval, predict and export accept it"
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help=out)
    add_shared(parser, "weights", "device", "json", "overwrite")


def alpha_list(text: str) -> list[float]:
    """An argparse type: numbers from 0 to 1, separated by commas."""
    try:
        alphas = [float(part) for part in text.split(",")]
    except ValueError:
        alphas = []
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
        raise argparse.ArgumentTypeError(f"must be numbers from 0 to 1 such as 0,0.5,1, not '{text}'")
    return alphas


def run(args: argparse.Namespace) -> int:
    from fastft.evaluate.weight_average import ALPHAS, average, check_out, write_average

    if args.alpha is not None and args.soup is not None:
        raise UserError("--alpha is for a curve between two models, --soup for a mean. Omit one of them")
    check_out(args.out, args.overwrite)
    trained, averages = average(
        args.models,
        args.data,
        args.device,
        alphas=args.alpha or ALPHAS,
        soup=args.soup,
        only_present_classes=args.only_present_classes,
        weights=args.weights,
        say=say,
    )
    if torchrun.rank() == 0:
        write_average(averages, trained, args.out)
        show(averages.record, args.json, print_average)
        say(f"written: {args.out}")
    return 0


def print_average(record: "AverageRecord", console: "Console") -> None:
    """Print a row for each model and average, with the selection set's standard error, and what was kept."""
    if record.data:
        score = record.rows[0].files[0].best_by
        names = [Path(path).name + (" (selection)" * (path == record.selection)) for path in record.data]
        rows = [
            [row.name + (" *" if row == record.chosen else ""), *(figure(f.figure, 3, _error(f)) for f in row.files)]
            for row in record.rows
        ]
        print_table(compact_table(f"{SCORE_NAMES[score]} %", ["model", *names], rows), console)
    if record.note:
        print_line(console, f"note: {record.note}")
    print_line(console, f"kept: {record.description}")


def _error(figures: "FileFigures") -> float | None:
    return figures.standard_error if figures.best_by == TOP1 else None
