"""`fastft report RUN`."""

import argparse
from pathlib import Path

from beton_tools.base.atomic import check_output
from fastft.cli.arguments import add_shared

EXAMPLE = "fastft report runs/final_b16 --price 2.48"
TAKES_OPTIONS = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run_directory", metavar="RUN", type=Path, help="a run directory")
    add("--out", type=Path, metavar="FILE", help="default: report.html in the run directory")
    add_shared(parser, "price")
    mistakes = "predict the validation images (auto: with a GPU, or where they are few)"
    add("--mistakes", choices=("auto", "always", "never"), default="auto", help=mistakes)
    add_shared(parser, "weights", "overwrite")


def run(args: argparse.Namespace) -> int:
    from fastft.report.run_report import SUFFIXES, write_run_page

    if args.out is not None:
        check_output(args.out, SUFFIXES, args.overwrite)
    print(write_run_page(args.run_directory, args.out, args.mistakes, args.weights, args.price))
    return 0
