"""The options of `fastft bench` and of the scripts in benchmarks/; imports nothing heavy."""

import argparse
from pathlib import Path

BENCHES = ("decode", "augment", "loader", "convert", "step", "e2e")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, metavar="FILE.beton", help="measure on images of this file")
    parser.add_argument(
        "--images", type=Path, metavar="DIR",
        help="measure on JPEGs in a folder per class (default: $FASTFT_IMAGENET_SAMPLE, else packaged photographs)",
    )  # fmt: skip
    parser.add_argument("--count", type=_positive, metavar="N", help="images at most (default 700)")
    parser.add_argument(
        "--peers", default="all", help="all, none, or of ffcv,timm,torchvision,dali,webdataset,litdata,open_clip,pillow"
    )  # fmt: skip
    parser.add_argument("--rounds", type=_positive, metavar="N", help="counted rounds (default 7)")
    parser.add_argument("--recipe", type=Path, metavar="RECIPE", help="of e2e (default: a tiny one on a CPU)")
    parser.add_argument(
        "--quick", action="store_true", help="every path once on few images; the figures mean nothing"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("bench"), metavar="DIR", help="JSON and HTML (default bench/)"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number
