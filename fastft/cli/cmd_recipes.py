"""`fastft recipes` and `fastft options`: what comes with fastft."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastft.cli.arguments import add_shared, show
from fastft.recipe import SECTIONS
from fastft.recipe.option_list import OptionInfo, list_options

if TYPE_CHECKING:
    from rich.console import Console


class Recipes:
    """`fastft recipes`."""

    EXAMPLE = "fastft recipes"
    TAKES_OPTIONS = False

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_shared(parser, "json")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        from fastft.cli.printing import print_recipes
        from fastft.cost.explanation import list_recipes

        return show(list_recipes(), args.json, print_recipes)


class Options:
    """`fastft options [SECTION|NAME]`."""

    EXAMPLE = "fastft options optim\n  fastft options optim.lr"
    TAKES_OPTIONS = False

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        selection = "a section (optim), an option (optim.lr) or its name in any section (lr). Default: all"
        parser.add_argument("selection", metavar="SECTION|NAME", nargs="?", help=selection)
        add_shared(parser, "json")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        return show(list_options(args.selection), args.json, _print_options)


def _print_options(options: Sequence[OptionInfo], console: "Console") -> None:
    section = ""
    for option in options:
        if option.name.partition(".")[0] != section:
            section = option.name.partition(".")[0]
            console.rule(f"{section}: {SECTIONS[section].__doc__}", align="left")
        console.print(option.name, style="bold", end="")
        console.print(f"  default {option.default}. Values: {option.limits}")
        console.print(f"    {option.meaning}")
        if option.paper:
            console.print(f"    the paper's runs: {option.paper}")
