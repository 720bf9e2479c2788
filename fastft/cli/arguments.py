"""Argument types and arguments that several commands share."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from fastft.recipe.constants import AUTO, DEVICES, WEIGHT_CHOICES

OVERRIDES = "any recipe option as --section.key=value, e.g. --optim.lr=3e-4 (fastft options lists them all)"
RECIPE = "a recipe of fastft recipes (final_b16), a file (mine.yaml), or a row of a table (02_lr[1e-5], mine.yaml[LABEL])"


def print_weights(text: str) -> None:
    """Say on stderr which weights are used."""
    print(f"using the {text}", file=sys.stderr)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help=RECIPE)


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", metavar="CKPT", type=Path, help="a run directory, or a checkpoint in it"
    )
    add_weights(parser)


def add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        choices=WEIGHT_CHOICES,
        default=AUTO,
        help="raw or ema: those weights of the last epoch; last: the kind that the run chose, of the last epoch; best: of the "
        "best epoch; auto (default): what the run chose at its end",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=DEVICES, default=AUTO)


def add_logit_adjustment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--logit-adjustment",
        action="store_true",
        help="correct the logits for unequal class sizes in the training file: lower balanced error",
    )


def add_only_present_classes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only-present-classes",
        action="store_true",
        help="rank only the classes that have images in the file, as published for ImageNet-A and ImageNet-R",
    )


def add_price(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--price", type=positive(float), help="price of one GPU-hour; without it no money is shown"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """An argparse type: a number greater than 0."""

    def parse(text: str) -> float:
        number = _number(kind, text)
        if number is None or not 0 < number < float("inf"):
            what = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"must be a {what} greater than 0, not '{text}'")
        return number

    return parse


def whole_number(text: str) -> int:
    """An argparse type: a whole number, 0 or more, that fits 32 bits."""
    number = _number(int, text)
    if number is None or number < 0:
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 or more, not '{text}'")
    if number >= 1 << 31:
        raise argparse.ArgumentTypeError(f"must be at most {(1 << 31) - 1}, not '{text}'")
    return int(number)


def share(text: str) -> float:
    """An argparse type: a share in (0, 1], as 0.45 or 45%."""
    number = _number(float, text.removesuffix("%"))
    value = None if number is None else number / (100 if text.endswith("%") else 1)
    if value is None or not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a share such as 0.45 or 45%, not '{text}'")
    return value


def _number(kind: type[int] | type[float], text: str) -> float | None:
    try:
        return kind(text)
    except ValueError:
        return None
