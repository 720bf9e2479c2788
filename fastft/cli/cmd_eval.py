"""`fastft eval CKPT`."""

import argparse
import json
import os
from pathlib import Path

from fastft.cli.arguments import add_checkpoint, add_device, add_json, print_weights

HELP = "accuracy, metrics per class and calibration of a checkpoint on a .beton file"
EXAMPLE = "fastft eval runs/final_b16 --data val.beton"
TAKES_OPTIONS = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument(
        "--data", metavar="FILE.beton", type=Path, help="default: the recipe's validation file"
    )
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="write the prediction for every image to a table"
    )
    parser.add_argument(
        "--logit-adjustment",
        action="store_true",
        help="correct the logits for unequal class sizes in the training file: lower balanced error",
    )
    add_device(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from fastft.inference.evaluation import evaluate_checkpoint
    from fastft.inference.evaluation_output import print_evaluation

    scores = evaluate_checkpoint(
        args.checkpoint,
        args.data,
        args.device,
        weights=args.weights,
        logit_adjustment=args.logit_adjustment,
        csv=args.csv,
    )
    if os.environ.get("RANK", "0") != "0":  # every process has the same sums; rank 0 prints them
        return 0
    print_weights(scores["weights"])
    if args.json:
        print(json.dumps(scores))
    else:
        print_evaluation(scores, Console())
    return 0
