"""`fastft preview RECIPE`."""

import argparse
from pathlib import Path

from beton_tools.errors import UserError
from fastft.cli.arguments import add_recipe, whole_number

HELP = "draw what the model will see: originals, crops, results and the ops between"
EXAMPLE = "fastft preview final_b16 --data in1k/train.beton --out grid.png --epoch 3"
TAKES_OPTIONS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument("--data", type=Path, metavar="FILE.beton", help="default: the recipe's training file")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG", help="picture to write")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the plan")
    parser.add_argument("--epoch", type=whole_number, default=0, help="default 0")
    parser.add_argument("--count", type=whole_number, default=12, help="images (default 12)")


def run(args: argparse.Namespace) -> int:
    from fastft.build import build_policy
    from fastft.config import load_recipe
    from fastft.explain.preview import write_preview
    from fastft.phases import phase_at

    recipe = load_recipe(args.recipe, args.overrides)
    data = args.data or recipe.data.train
    if data is None:
        raise UserError("no images to preview; give --data FILE.beton")
    write_preview(
        data,
        build_policy(recipe),
        phase_at(recipe, args.epoch).size,
        seed=recipe.train.seed,
        epoch=args.epoch,
        count=args.count,
        out=args.out,
        plan_out=args.json,
    )
    print(f"wrote {args.out}" + (f" and {args.json}" if args.json else ""))
    return 0
