"""`fastft bench NAME`."""

import argparse
from pathlib import Path

from beton_tools.base.console import make_console
from beton_tools.base.errors import UserError
from fastft.bench import BENCHES
from fastft.cli.arguments import positive, recipe_reference, show
from fastft.recipe import load_recipe
from fastft.recipe.constants import PEERS

HELP = "measure this machine, against what one would use instead; JSON, a table and an HTML page"
EXAMPLE = "fastft bench loader --images imagenet/train --peers ffcv,timm --out bench"
TAKES_OPTIONS = False
TRAFFIC = "traffic"  # counted from shapes: no rounds, no contenders, no images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", choices=(*BENCHES, TRAFFIC, "all"), metavar="NAME", help=f"{', '.join(BENCHES)}, {TRAFFIC} or all")
    add(
        "counted",
        nargs="?",
        type=recipe_reference,
        metavar="RECIPE",
        help=f"of {TRAFFIC}: the recipe whose step is counted",
    )
    add("--json", action="store_true", help=f"of {TRAFFIC}: print JSON instead of a table")
    add("--data", type=Path, metavar="FILE.beton", help="measure on images of this file")
    add(
        "--images", type=Path, metavar="DIR",
        help="measure on JPEGs in a folder per class (default: $FASTFT_IMAGENET_SAMPLE, else packaged photographs)",
    )  # fmt: skip
    add("--count", type=positive(int), metavar="N", help="images at most (default 700)")
    add(
        "--peers", default="all", help=f"all, none, or of {','.join(PEERS)}"
    )  # fmt: skip
    add("--rounds", type=positive(int), metavar="N", help="counted rounds (default 7)")
    add("--recipe", type=recipe_reference, metavar="RECIPE", help="what e2e trains (default: on a CPU, a tiny recipe)")
    add("--quick", action="store_true", help="every path once on few images; the figures mean nothing")
    add("--out", type=Path, default=Path("bench"), metavar="DIR", help="JSON and HTML (default bench/)")


def run(args: argparse.Namespace) -> int:
    if args.name == TRAFFIC:
        return _run_traffic(args)
    if args.counted or args.json:
        raise UserError(f"RECIPE and --json are for fastft bench {TRAFFIC}; the recipe of e2e is --recipe")
    from fastft.bench.suite import run_bench

    run_bench(args.name, args, make_console())
    return 0


def _run_traffic(args: argparse.Namespace) -> int:
    if args.counted is None:
        raise UserError(f"no recipe to count; use fastft bench {TRAFFIC} RECIPE")
    from fastft.bench.traffic_table import measure_traffic, print_traffic

    return show(measure_traffic(load_recipe(args.counted)), args.json, print_traffic)
