"""Predictions of image files on the console and as a CSV file."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from rich.console import Console

from beton_tools.base.atomic import atomic_path
from beton_tools.base.console import printable
from beton_tools.base.errors import UserError
from fastft.evaluate.prediction import Prediction


def print_predictions(predictions: Iterator[Prediction]) -> None:
    """Print one line per file."""
    console = Console(markup=False)
    for p in predictions:
        classes = ", ".join(
            f"{name} {probability:.1%}" for name, probability in zip(p.classes, p.probabilities, strict=True)
        )
        line = printable(f"{p.path}: {classes or 'not read: ' + str(p.error)}")
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def write_predictions(predictions: Iterator[Prediction], path: Path) -> None:
    """Write a CSV file with one row per image and rank: file, rank, class, probability, error.

    The file appears under its name when it is complete.

    Raises:
        UserError: it cannot be written.
    """
    try:
        # surrogateescape writes file names that are not UTF-8 with their original bytes
        with (
            atomic_path(path) as partial,
            partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            _write_rows(predictions, file)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


def _write_rows(predictions: Iterator[Prediction], file: TextIO) -> None:
    writer = csv.writer(file)
    writer.writerow(["file", "rank", "class", "probability", "error"])
    for p in predictions:
        if p.error is not None:
            writer.writerow([p.path, "", "", "", p.error])
        for rank, (name, probability) in enumerate(zip(p.classes, p.probabilities, strict=True), 1):
            writer.writerow([p.path, rank, name, f"{probability:.6f}", ""])
