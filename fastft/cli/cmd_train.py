"""`fastft train RECIPE`."""

import argparse
import shlex

from beton_tools.base import torchrun
from beton_tools.base.console import make_console
from fastft.cli.arguments import add_recipe
from fastft.recipe import load_recipe

EXAMPLE = "fastft train final_b16 --data.train=in1k/train.beton --data.val=in1k/val.beton"
TAKES_OPTIONS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)


def run(args: argparse.Namespace) -> int:
    """Train. If the run can be continued after an interruption, say with which command."""
    from fastft.jobs.run import run_recipe

    try:
        run_recipe(load_recipe(args.recipe, args.overrides), make_console(lasting=True))
    except KeyboardInterrupt as stop:
        if stop.args and torchrun.world_size() == 1:
            stop.args = (f"{stop.args[0]}: {shlex.join(['fastft', 'train', args.recipe, *args.overrides])}",)
        raise
    return 0
