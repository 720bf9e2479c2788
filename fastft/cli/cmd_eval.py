"""`fastft eval CKPT`."""

import argparse
import json
import os
from pathlib import Path

from fastft.cli.arguments import add_checkpoint, add_device, add_json

HELP = "exact top-1 and top-5 of a checkpoint on a .beton file"
EXAMPLE = "fastft eval runs/final_b16 --data val.beton"
TAKES_OPTIONS = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument(
        "--data", metavar="FILE.beton", type=Path, help="default: the recipe's validation file"
    )
    add_device(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from fastft.inference.evaluation import evaluate_checkpoint

    scores = evaluate_checkpoint(args.checkpoint, args.data, args.device)
    if os.environ.get("RANK", "0") != "0":  # every process has the same sums; rank 0 prints them
        return 0
    if args.json:
        print(json.dumps(scores))
    else:
        print(
            f"top-1 {scores['top1']:.3f} % (standard error {scores['standard_error']:.3f}), top-5 {scores['top5']:.3f} %, "
            f"loss {scores['loss']:.4f}, {scores['samples']} images"
        )
    return 0
