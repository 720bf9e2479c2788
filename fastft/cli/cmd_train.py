"""`fastft train RECIPE`."""

import argparse

from fastft.cli.arguments import add_recipe

HELP = "train a recipe; the same command on the same run directory continues it"
EXAMPLE = "fastft train final_b16 --data.train=in1k/train.beton --data.val=in1k/val.beton"
TAKES_OPTIONS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)


def run(args: argparse.Namespace) -> int:
    from fastft.recipe import load_recipe
    from fastft.train.loop import train

    train(load_recipe(args.recipe, args.overrides))
    return 0
