"""`fastft export CKPT`."""

import argparse
from pathlib import Path

from beton_tools.base.console import print_printable, say
from fastft.cli.arguments import add_checkpoint, add_shared
from fastft.recipe.constants import EXPORT_FORMATS

EXAMPLE = "fastft export runs/final_b16 --format timm --out final_b16_timm"
TAKES_OPTIONS = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    add_shared(parser, "logit-adjustment", "no-temperature")
    formats = (
        "timm, open_clip: a folder for these libraries. safetensors: weights and metadata. onnx: for ONNX Runtime. torch: a "
        "program for torch.export"
    )
    parser.add_argument("--format", required=True, choices=EXPORT_FORMATS, help=formats)
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        help="a new folder (timm, open_clip) or a .safetensors, .onnx or .pt2 (torch) file",
    )
    add_shared(parser, "overwrite")


def run(args: argparse.Namespace) -> int:
    from fastft.export import export_checkpoint

    done = export_checkpoint(
        args.checkpoint, args.format, args.out, args.weights, args.logit_adjustment, args.overwrite,
        temperature=not args.no_temperature,
    )  # fmt: skip
    say(f"using the {done.weights}")
    if done.warning:
        say(f"warning: {done.warning}")
    print_printable(
        f"{done.path}: loaded again with {args.format}. Its {done.output} differ from fastft's by at most "
        f"{done.max_difference:.2g} (the largest is {done.largest:.3g}). Model card: {done.card}"
    )
    return 0
