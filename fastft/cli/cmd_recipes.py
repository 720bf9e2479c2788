"""`fastft recipes` and `fastft options`: what comes with fastft."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from fastft.cli.arguments import add_json

if TYPE_CHECKING:
    from rich.console import Console

    from fastft.recipe.option_list import OptionInfo


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

        from fastft.recipe.option_list import list_options

        options = list_options(args.selection)
        if args.json:
            print(json.dumps([asdict(option) for option in options], indent=1))
        else:
            _print_options(options, Console(markup=False))
        return 0


def _print_options(options: Sequence["OptionInfo"], console: "Console") -> None:
    from rich.text import Text

    from fastft.recipe import SECTIONS

    section = ""
    for option in options:
        if option.name.partition(".")[0] != section:
            section = option.name.partition(".")[0]
            console.rule(f"{section}: {SECTIONS[section].__doc__}", align="left")
        limits = f"  default {option.default}; {option.limits}"
        console.print(Text.assemble((option.name, "bold"), limits), highlight=False)
        console.print(f"    {option.meaning}", highlight=False, markup=False)
        if option.paper:
            console.print(f"    the paper's runs: {option.paper}", highlight=False, markup=False)
