"""`fastft bench NAME`."""

import argparse
from pathlib import Path
from typing import Any, NoReturn

from beton_tools.base.console import format_duration, make_console
from beton_tools.base.parser import at_least, positive
from fastft.bench import BENCHES, PEERS
from fastft.cli.arguments import recipe_reference

EXAMPLE = "fastft bench loader --images imagenet/train --peers ffcv,timm --out bench"
TAKES_OPTIONS = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser._optionals.conflict_handler = "resolve"  # in the place of argparse's own --help
    add("-h", "--help", action=_Help, nargs=0, help="show this help. After NAME: also its measures")
    add("name", metavar="NAME", help=f"{', '.join(BENCHES)}, all, or one measure such as loader.cold")
    images = "folder with JPEGs, one folder per class (default: $FASTFT_IMAGENET_SAMPLE, else packaged photographs)"
    add("--images", type=Path, metavar="DIR", help=images)
    add("--count", type=positive(int), metavar="N", help="maximum number of images (default 700)")
    peers = f"other libraries to measure: all (default), none, or names: {','.join(PEERS)}"
    add("--peers", default="all", metavar="NAME,...", help=peers)
    own = "your own loader: a Python file and its function that returns an iterable of batches (docs/benchmarks.md)"
    add("--contender", metavar="FILE.py:FUNCTION", help=own)
    add("--rounds", type=positive(int), metavar="N", help="rounds that count (default 5)")
    add(
        "--recipe",
        type=recipe_reference,
        metavar="RECIPE",
        help="recipe that e2e trains (default on a CPU: a tiny recipe)",
    )
    seed = "draws the contenders' order in each round (default: another one each time, which the result states)"
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


class _Help(argparse.Action):
    """Print the help and exit. If a benchmark is named before, its measures follow."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> NoReturn:
        name = getattr(namespace, "name", None)
        if name is not None:
            from fastft.bench.suite import planned

            measures = (
                f"  {plan.key:24} about {format_duration(plan.seconds)}{', needs a GPU' * plan.needs_gpu}"
                for plan in planned(name, here=False)
            )
            parser.epilog = "\n".join([f"measures of {name}:", *measures, "", parser.epilog or ""])
        parser.print_help()
        parser.exit()


def run(args: argparse.Namespace) -> int:
    from fastft.bench.suite import run_bench

    run_bench(args.name, args, make_console(lasting=True))
    return 0
