"""`fastft bench NAME`."""

import argparse
from pathlib import Path

from beton_tools.base.console import make_console
from beton_tools.base.parser import at_least, positive
from fastft.bench import BENCHES
from fastft.cli.arguments import recipe_reference
from fastft.recipe.constants import PEERS

EXAMPLE = "fastft bench loader --images imagenet/train --peers ffcv,timm --out bench"
TAKES_OPTIONS = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME", help=f"{', '.join(BENCHES)}, all, or one measure such as loader.cold")
    images = "folder with JPEGs, one folder per class (default: $FASTFT_IMAGENET_SAMPLE, else packaged photographs)"
    add("--images", type=Path, metavar="DIR", help=images)
    add("--count", type=positive(int), metavar="N", help="maximum number of images (default 700)")
    add("--peers", default="all", help=f"all, none, or some of {','.join(PEERS)}")
    own = "your own loader: a Python file and its function that returns an iterable of batches (docs/benchmarks.md)"
    add("--contender", metavar="FILE.py:FUNCTION", help=own)
    add("--rounds", type=positive(int), metavar="N", help="rounds that count (default 5)")
    add(
        "--recipe",
        type=recipe_reference,
        metavar="RECIPE",
        help="recipe that e2e trains (default on a CPU: a tiny recipe)",
    )
    seed = "draws the order of contenders in each round (default: another one each time, which the result states)"
    add("--seed", type=at_least(0), metavar="N", help=seed)
    add("--quick", action="store_true", help="run every path once on few images. The results mean nothing")
    add(
        "--out",
        type=Path,
        default=Path("bench"),
        metavar="DIR",
        help="folder for NAME.json and its page NAME.html (default bench/)",
    )
    add(
        "--add",
        type=Path,
        metavar="FILE",
        help="add the measures to this result, which must come from the same version and machine",
    )


def run(args: argparse.Namespace) -> int:
    from fastft.bench.suite import run_bench

    run_bench(args.name, args, make_console(lasting=True))
    return 0
