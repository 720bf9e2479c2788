"""`fastft preview RECIPE`."""

import argparse
from pathlib import Path

from beton_tools.base.atomic import check_output
from beton_tools.base.console import print_printable, say
from beton_tools.base.errors import UserError
from beton_tools.base.parser import at_least, positive
from fastft.cli.arguments import add_recipe, add_shared
from fastft.recipe import Recipe, load_recipe

EXAMPLE = "fastft preview final_b16 --data in1k/train.beton --out grid.png --epoch 3"
TAKES_OPTIONS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="PNG", help="picture to write")
    parser.add_argument("--epoch", type=at_least(0), default=0, help="epoch to draw (default 0)")
    parser.add_argument("--count", type=positive(int), default=12, help="images to draw (default 12)")
    add_shared(parser, "overwrite")


def run(args: argparse.Namespace) -> int:
    from fastft.jobs.decided import decide_prepared
    from fastft.report.preview import write_preview

    check_output(args.out, [".png", ".jpg", ".jpeg", ".pdf"], args.overwrite)
    recipe = load_recipe(args.recipe, args.overrides)
    if recipe.data.train is None:
        raise UserError("no images to preview. Give --data FILE.beton")
    if not {"schedule.epochs"} & recipe.automatic:
        _check_epoch(recipe, args.epoch)
    recipe = decide_prepared(recipe.with_option("model.weights", "random"), say)  # no weights are needed, or looked for
    _check_epoch(recipe, args.epoch)
    write_preview(recipe, args.epoch, args.count, args.out)
    print_printable(f"written: {args.out}")
    return 0


def _check_epoch(recipe: Recipe, epoch: int) -> None:
    if epoch >= recipe.epochs:
        raise UserError(f"there is no epoch {epoch}. The recipe has {recipe.epochs}, counted from 0")
