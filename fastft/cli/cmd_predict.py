"""`fastft predict CKPT IMAGE ...`."""

import argparse
from pathlib import Path

from fastft.cli.arguments import add_checkpoint, add_device, print_weights, whole_number

HELP = "label image files with a checkpoint"
EXAMPLE = "fastft predict runs/demo photo.jpg holiday/ --topk 3"
TAKES_OPTIONS = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", type=Path, help="image files, or folders of them"
    )
    parser.add_argument("--topk", type=whole_number, default=5, help="classes per image (default 5)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a table instead of printing")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    from fastft.inference.prediction import predict_files
    from fastft.inference.prediction_output import print_predictions, write_predictions

    predictions = predict_files(
        args.checkpoint, args.images, args.topk, args.device, args.weights, print_weights
    )
    if args.csv is not None:
        write_predictions(predictions, args.csv)
    else:
        print_predictions(predictions)
    return 0
