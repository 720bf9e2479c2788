"""`fastft explain RECIPE`."""

import argparse
import json

from rich.console import Console

from fastft.cli.arguments import add_json, add_recipe, whole_number

HELP = "show what a recipe will do and cost, without data, weights or GPU"
EXAMPLE = "fastft explain rcp/final_b16.yaml --at-step 6249 --json"
TAKES_OPTIONS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    add_json(parser)
    parser.add_argument(
        "--at-step", type=whole_number, metavar="N", help="also show every group's lr at optimiser step N"
    )


def run(args: argparse.Namespace) -> int:
    from fastft.config import load_recipe
    from fastft.explain.explanation import explain, print_explanation

    values = explain(load_recipe(args.recipe, args.overrides), args.at_step)
    if args.json:
        print(json.dumps(values, indent=1))
    else:
        print_explanation(values, Console())
    return 0
