"""`fastft train RECIPE`."""

import argparse
import shlex
from typing import TYPE_CHECKING, Any

from beton_tools.base import torchrun
from beton_tools.base.console import make_console
from fastft.cli.arguments import add_recipe
from fastft.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from rich.console import Console

HELP = "train a recipe; the same command on the same run directory continues it"
EXAMPLE = "fastft train final_b16 --data.train=in1k/train.beton --data.val=in1k/val.beton"
TAKES_OPTIONS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)


def run(args: argparse.Namespace) -> int:
    """Train; an interruption after which the run can be continued says with which command."""
    try:
        train_recipe(load_recipe(args.recipe, args.overrides), make_console())
    except KeyboardInterrupt as stop:
        if stop.args and torchrun.world_size() == 1:
            stop.args = (f"{stop.args[0]}: {shlex.join(['fastft', 'train', args.recipe, *args.overrides])}",)
        raise
    return 0


def train_recipe(recipe: Recipe, console: "Console") -> dict[str, Any]:
    """Prepare a recipe's photographs in process 0 while the others wait, then train; returns the content of `result.json`."""
    from fastft.photos.prepare import line_printer, prepare_data
    from fastft.train.distributed import connected, find_world
    from fastft.train.loop import train

    options = recipe.train
    with connected(find_world(options.device, options.timeout_minutes, "train.device")) as world:
        return train(prepare_data(recipe, line_printer(console), world), console)
