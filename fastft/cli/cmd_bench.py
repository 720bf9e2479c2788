"""`fastft bench NAME`, and the scripts in benchmarks/."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from beton_tools.errors import UserError
from fastft.bench import BENCHES
from fastft.cli.arguments import positive

HELP = "measure this machine, against what one would use instead; JSON, a table and an HTML page"
EXAMPLE = "fastft bench loader --images imagenet/train --peers ffcv,timm --out bench"
TAKES_OPTIONS = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", choices=(*BENCHES, "all"), metavar="NAME", help=f"{', '.join(BENCHES)} or all"
    )
    _add_options(parser)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, metavar="FILE.beton", help="measure on images of this file")
    parser.add_argument(
        "--images", type=Path, metavar="DIR",
        help="measure on JPEGs in a folder per class (default: $FASTFT_IMAGENET_SAMPLE, else packaged photographs)",
    )  # fmt: skip
    parser.add_argument("--count", type=positive(int), metavar="N", help="images at most (default 700)")
    parser.add_argument(
        "--peers", default="all", help="all, none, or of ffcv,timm,torchvision,dali,webdataset,litdata,open_clip,pillow"
    )  # fmt: skip
    parser.add_argument("--rounds", type=positive(int), metavar="N", help="counted rounds (default 7)")
    parser.add_argument("--recipe", type=Path, metavar="RECIPE", help="of e2e (default: a tiny one on a CPU)")
    parser.add_argument(
        "--quick", action="store_true", help="every path once on few images; the figures mean nothing"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("bench"), metavar="DIR", help="JSON and HTML (default bench/)"
    )


def run(args: argparse.Namespace) -> int:
    from fastft.bench.suite import run_bench

    run_bench(args.name, args, Console())
    return 0


def script(name: str, description: str | None) -> None:
    """Run `fastft bench NAME` from a script in benchmarks/, whose docstring is the help text."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_options(parser)
    parser.set_defaults(name=name)
    try:
        run(parser.parse_args())
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
