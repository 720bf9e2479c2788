"""`fastft predict CKPT IMAGE ...`."""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from beton_tools.base import torchrun
from beton_tools.base.atomic import check_output
from beton_tools.base.console import print_printable, say
from beton_tools.base.errors import UserError
from beton_tools.base.parser import positive
from beton_tools.read.beton_paths import is_named_beton
from fastft.cli.arguments import add_checkpoint, add_shared, share

if TYPE_CHECKING:
    from fastft.evaluate.predictor import Prediction

EXAMPLE = "fastft predict runs/demo/fine_tuned photo.jpg holiday/ --topk 3"
TAKES_OPTIONS = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    images = "image files, or folders with images. For --features also .beton files"
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help=images)
    topk = "classes per image (default 5. With several labels per image: all that reach their thresholds)"
    parser.add_argument("--topk", type=positive(int), help=topk)
    reject = (
        "answer 'none of these' if even the most probable class is below this probability, such as 0.7 or 70%%. "
        "A table in the run's report helps you choose it"
    )
    parser.add_argument("--min-probability", type=share, default=0.0, metavar="P", help=reject)
    foreign = (
        "answer 'none of these' if the image is less like the training images than 95 %% of the validation images were. The "
        "run's report shows what this rejects"
    )
    parser.add_argument("--reject-foreign", action="store_true", help=foreign)
    parser.add_argument(
        "--flip-average",
        action="store_true",
        help="average the predictions for each image and its mirror image, which takes twice as long",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the predictions to a table")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each image, one per line")
    votes = (
        "write a picture and a table for each image: which of its patches vote for the most probable class, and which for the "
        "second one. Exact: a logit is the mean over patches (only with the paper's head, model.pool=patches)"
    )
    parser.add_argument("--votes", type=Path, metavar="DIR", help=votes)
    features = (
        "write the embeddings that the head receives, not classes. Arrays: features (N, D), labels, files, classes"
    )
    parser.add_argument("--features", type=Path, metavar="FILE.npz", help=features)
    add_shared(parser, "logit-adjustment", "no-temperature", "device", "overwrite")


def run(args: argparse.Namespace) -> int:
    if args.features is not None:
        return _write_features(args)
    from fastft.evaluate.predictor import predict_files, write_predictions
    from fastft.evaluate.votes import check_votes_folder, save_votes

    for path in args.images:
        if is_named_beton(path):
            raise UserError(
                f"{path} is a .beton file or a subset of one. Use fastft eval --csv for its predictions, or give --features"
            )
    if args.csv is not None:
        check_output(args.csv, [".csv"], args.overwrite)
    options = {
        "weights": args.weights, "logit_adjustment": args.logit_adjustment, "temperature": not args.no_temperature,
        "min_probability": args.min_probability, "flip_average": args.flip_average, "votes": args.votes is not None,
        "reject_foreign": args.reject_foreign,
    }  # fmt: skip
    predictions = predict_files(args.checkpoint, args.images, args.topk, args.device, say, **options)
    if args.votes is not None:
        check_votes_folder(args.votes, args.overwrite)
        predictions = save_votes(predictions, args.votes, say)
    printed = _printed(predictions, args.json)
    if args.csv is not None:
        write_predictions(printed, args.csv)
    for _ in printed:
        pass
    return 0


def _printed(predictions: "Iterable[Prediction]", as_json: bool) -> "Iterator[Prediction]":
    """Print each prediction, then yield it."""
    for p in predictions:
        if as_json:
            values = {key: getattr(p, key) for key in ("classes", "probabilities", "rejected", "error", "notes")}
            print(json.dumps({"path": str(p.path)} | values), flush=True)
            yield p
            continue
        classes = ", ".join(f"{name} {value:.1%}" for name, value in zip(p.classes, p.probabilities, strict=True))
        likely = next((f" (most probable: {name} {value:.1%})" for name, value in p.rejected.items()), "")
        nothing = f"none of these{likely}" if likely else "no label reaches its threshold"
        nothing = nothing if p.error is None else f"not read: {p.error}"
        print_printable(f"{p.path}: {classes or nothing}")
        yield p


def _write_features(args: argparse.Namespace) -> int:
    from fastft.evaluate.features import save_features

    names = (
        "csv", "json", "topk", "votes", "min_probability", "reject_foreign", "flip_average", "logit_adjustment",
        "no_temperature",
    )  # fmt: skip
    if given := [f"--{name.replace('_', '-')}" for name in names if getattr(args, name)]:
        raise UserError(f"--features writes embeddings, not classes. Omit {', '.join(given)}")
    check_output(args.features, [".npz"], args.overwrite)
    done = save_features(args.checkpoint, args.images, args.device, args.weights, args.features, say)
    if torchrun.rank() == 0:
        print_printable(done)
    return 0
