"""`fastft recipes`."""

import argparse
import json

from fastft.cli.arguments import add_json

HELP = "list the recipes and tables that come with fastft, with expected accuracy and predicted cost"
EXAMPLE = "fastft recipes"
TAKES_OPTIONS = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from fastft.cost.recipe_list import list_recipes, print_recipes

    values = list_recipes()
    if args.json:
        print(json.dumps(values, indent=1))
    else:
        print_recipes(values, Console(markup=False))
    return 0
