"""`fastft options [SECTION|NAME]`."""

import argparse
import json
from dataclasses import asdict

from fastft.cli.arguments import add_json

HELP = "list every recipe option: meaning, default, limits, and the value in the paper's runs"
EXAMPLE = "fastft options optim\n  fastft options optim.lr"
TAKES_OPTIONS = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "selection",
        metavar="SECTION|NAME",
        nargs="?",
        help="a section (optim), an option (optim.lr) or its name in any section (lr); default: all",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from fastft.recipe.option_list import list_options, print_options

    options = list_options(args.selection)
    if args.json:
        print(json.dumps([asdict(option) for option in options], indent=1))
    else:
        print_options(options, Console(markup=False))
    return 0
