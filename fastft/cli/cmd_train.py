"""`fastft train RECIPE`."""

import argparse

from fastft.cli.arguments import add_recipe

HELP = "train a recipe; the same command on the same run directory continues it"
EXAMPLE = "fastft train final_b16 --data.train=in1k/train.beton --data.val=in1k/val.beton"
TAKES_OPTIONS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from fastft.photos.prepare import line_printer, prepare_data
    from fastft.recipe import load_recipe
    from fastft.train.loop import train

    console = Console(markup=False)
    train(prepare_data(load_recipe(args.recipe, args.overrides), line_printer(console)), console)
    return 0
