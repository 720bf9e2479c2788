"""`fastft bench NAME`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beton_tools.base.console import compact_table, make_console, print_table
from beton_tools.base.errors import UserError
from fastft.bench import BENCHES
from fastft.cli.arguments import positive, recipe_reference, show
from fastft.recipe import load_recipe
from fastft.recipe.constants import PEERS

if TYPE_CHECKING:
    from rich.console import Console

HELP = "measure this machine, against what one would use instead; JSON, a table and an HTML page"
EXAMPLE = "fastft bench loader --images imagenet/train --peers ffcv,timm --out bench"
TAKES_OPTIONS = False
TRAFFIC = "traffic"  # counted from shapes: no rounds, no contenders, no images
PATHS = {"autocast": "autocast, fp32 residual", "half": "half-precision copy"}
SMALLEST_ROW_GB = 0.05  # operations below it are one row of the table; the JSON has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", choices=(*BENCHES, TRAFFIC, "all"), metavar="NAME", help=f"{', '.join(BENCHES)}, {TRAFFIC} or all")
    counted = f"of {TRAFFIC}: the recipe whose step is counted"
    add("counted", nargs="?", type=recipe_reference, metavar="RECIPE", help=counted)
    add("--json", action="store_true", help=f"of {TRAFFIC}: print JSON instead of a table")
    add("--data", type=Path, metavar="FILE.beton", help="measure on images of this file")
    images = "measure on JPEGs in a folder per class (default: $FASTFT_IMAGENET_SAMPLE, else packaged photographs)"
    add("--images", type=Path, metavar="DIR", help=images)
    add("--count", type=positive(int), metavar="N", help="images at most (default 700)")
    add("--peers", default="all", help=f"all, none, or of {','.join(PEERS)}")
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
    from fastft.cost.traffic import measure_traffic

    return show(measure_traffic(load_recipe(args.counted)), args.json, print_traffic)


def print_traffic(values: dict[str, Any], console: "Console") -> None:
    head = f"{values['recipe']}: memory traffic of a step of {values['images']} images outside matrix products and attention"
    console.print(f"{head}, counted from shapes", highlight=False)
    for path, title in PATHS.items():
        rows = [row for row in values["ops"] if row["path"] == path]
        large, small = ([r for r in rows if (r["gb"] >= SMALLEST_ROW_GB) is keep] for keep in (True, False))
        rest = {key: sum(r[key] for r in small) for key in ("calls", "gb")}
        cells = [[r["op"], r["direction"], str(r["calls"]), f"{r['gb']:.2f}"] for r in large]
        cells.append(["others", "", str(rest["calls"]), f"{rest['gb']:.2f}"])
        head = f"{title}: {values[f'{path}_gb']:.1f} GB, {values[f'{path}_calls']} operations"
        print_table(compact_table(head, ["operation", "direction", "calls", "GB"], cells, left=2), console)
