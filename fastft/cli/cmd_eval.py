"""`fastft eval CKPT`."""

import argparse
from pathlib import Path
from typing import Any

from beton_tools.base import torchrun
from beton_tools.base.errors import UserError
from fastft.cli.arguments import add_checkpoint, add_shared, positive, say, show

HELP = "accuracy, metrics per class and calibration of a checkpoint on .beton files"
EXAMPLE = "fastft eval runs/final_b16 --data val.beton"
TAKES_OPTIONS = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument(
        "--data", metavar="FILE.beton", type=Path, action="append", default=[],
        help="default: the recipe's validation file; give it several times for a table of several files",
    )  # fmt: skip
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the prediction for every image to a table")
    add_shared(parser, "logit-adjustment", "only-present-classes")
    _add_knn(parser.add_argument_group("nearest neighbours"))
    add_shared(parser, "device", "json")


def _add_knn(group: argparse._ArgumentGroup) -> None:
    neighbours = "classify by the K nearest training images in the embedding before the head, instead of by the head"
    group.add_argument("--knn", type=positive(int), metavar="K", help=neighbours)
    bank = "the .beton of the training images (default: the recipe's training file)"
    group.add_argument("--knn-train", type=Path, metavar="FILE.beton", help=bank)


def run(args: argparse.Namespace) -> int:
    from fastft.evaluate.output import print_evaluation, print_table_of_files

    found = _evaluate(args) if args.knn is None else _evaluate_neighbours(args)
    if torchrun.rank() != 0:  # every process has the same sums; rank 0 prints them
        return 0
    say(f"using the {found[0]['weights']}")
    if len(found) == 1:
        return show(found[0], args.json, print_evaluation)
    return show(found, args.json, print_table_of_files)


def _evaluate(args: argparse.Namespace) -> list[dict[str, Any]]:
    from fastft.evaluate.evaluation import evaluate_files

    if args.knn_train is not None:
        raise UserError("--knn-train is for nearest neighbours; give --knn K too")
    return evaluate_files(
        args.checkpoint,
        args.data,
        args.device,
        weights=args.weights,
        logit_adjustment=args.logit_adjustment,
        only_present_classes=args.only_present_classes,
        csv=args.csv,
    )


def _evaluate_neighbours(args: argparse.Namespace) -> list[dict[str, Any]]:
    from fastft.evaluate.features import evaluate_neighbours

    for name in ("csv", "logit_adjustment", "only_present_classes"):
        if getattr(args, name):
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} is about the head, which --knn does not use; omit one of them")
    return evaluate_neighbours(
        args.checkpoint, args.data, args.device, args.knn, train=args.knn_train, weights=args.weights
    )
