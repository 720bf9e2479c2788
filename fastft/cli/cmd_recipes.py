"""`fastft recipes` and `fastft options`: what comes with fastft."""

import argparse
import json
from dataclasses import asdict

from fastft.cli.arguments import add_json


class Recipes:
    """`fastft recipes`."""

    HELP = "list the recipes and tables that come with fastft, with expected accuracy and predicted cost"
    EXAMPLE = "fastft recipes"
    TAKES_OPTIONS = False

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_json(parser)

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        from rich.console import Console

        from fastft.cli.printing import print_recipes
        from fastft.cost.explanation import list_recipes

        values = list_recipes()
        if args.json:
            print(json.dumps(values, indent=1))
        else:
            print_recipes(values, Console(markup=False))
        return 0


class Options:
    """`fastft options [SECTION|NAME]`."""

    HELP = "list every recipe option: meaning, default, limits, and the value in the paper's runs"
    EXAMPLE = "fastft options optim\n  fastft options optim.lr"
    TAKES_OPTIONS = False

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "selection",
            metavar="SECTION|NAME",
            nargs="?",
            help="a section (optim), an option (optim.lr) or its name in any section (lr); default: all",
        )
        add_json(parser)

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        from rich.console import Console

        from fastft.cli.printing import print_options
        from fastft.recipe.option_list import list_options

        options = list_options(args.selection)
        if args.json:
            print(json.dumps([asdict(option) for option in options], indent=1))
        else:
            print_options(options, Console(markup=False))
        return 0
