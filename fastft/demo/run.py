"""Three trainings on the same photographs: the recipe, the untouched tower with a linear head, and random weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from beton_tools.convert import convert_folder
from beton_tools.format import Beton
from beton_tools.writer import WriteOptions
from fastft.config import load_recipe
from fastft.demo.assets import IMAGES, IMAGES_LICENCE, WEIGHTS, extract_cells, fetch
from fastft.demo.backbone import write_backbone
from fastft.report.sheet import prediction_sheet
from fastft.train.inference import predict_files
from fastft.train.loop import train
from fastft.train.run import headline_top1

PER_CLASS = {"val": 120, "train": 190}  # cells per class and split


@dataclass(frozen=True)
class Contender:
    """A training of the demo: what differs from the recipe, and what to call it."""

    name: str
    title: str
    overrides: tuple[str, ...]


CONTENDERS = (
    Contender("fine_tuned", "fine-tuned with the recipe", ()),
    # a frozen tower takes a larger lr than one that must not be disturbed
    Contender("linear", "untouched tower, linear head", ("--model.trainable_layers=0", "--optim.lr=1e-2")),
    # nothing to preserve: all blocks train, at nearly one lr
    Contender(
        "random",
        "random initialisation",
        (
            "--model.weights=random",
            "--model.trainable_layers=none",
            "--model.freeze_conv1=false",
            "--optim.lr=1e-3",
            "--optim.layer_decay=0.8",
        ),
    ),
)


def run_demo(recipe: Path, cache: Path, folder: Path, console: Console) -> dict[str, Any]:
    """Fetch, convert, train, compare; writes `folder/predictions.png` and returns the figures.

    Raises:
        UserError: no network and no cached packages, or a recipe that does not load.
    """
    load_recipe(recipe)  # a mistake in it shows before anything is downloaded
    arch, weights = write_backbone(fetch(WEIGHTS, cache), cache)
    images = folder / "images"
    extract_cells(fetch(IMAGES, cache), images, PER_CLASS)
    betons = {split: _convert(images / split, folder / f"{split}.beton") for split in PER_CLASS}
    common = [f"--model.arch={arch}", f"--model.weights={weights}"]
    common += [f"--data.{split}={path}" for split, path in betons.items()]
    results = {}
    for contender in CONTENDERS:
        console.rule(contender.title)
        overrides = [*common, *contender.overrides, f"--train.run_dir={folder / contender.name}"]
        results[contender.name] = train(load_recipe(recipe, overrides), console)
    figures = _figures(results, Beton.open(betons["val"]).labels)
    _print_table(figures, console)
    sheet = _draw_sheet(folder, images / "val", console)
    return {"figures": figures, "sheet": str(sheet)}


def _convert(source: Path, out: Path) -> Path:
    if not out.exists():
        convert_folder(source, out, WriteOptions())
    return out


def _figures(results: dict[str, dict[str, Any]], labels: np.ndarray) -> dict[str, Any]:
    """Top-1 in percent of each contender (the last epoch's EMA: no epoch is picked on these images)."""
    n = len(labels)
    majority = 100 * np.bincount(labels).max() / n
    top1 = {name: headline_top1(result["last"]) for name, result in results.items()}
    error = {name: 100 * (p / 100 * (1 - p / 100) / n) ** 0.5 for name, p in top1.items()}
    return {"n": n, "majority": majority, "top1": top1, "standard_error": error}


def _print_table(figures: dict[str, Any], console: Console) -> None:
    table = Table(title=f"top-1 on {figures['n']} photographs that no training saw", title_justify="left")
    table.add_column("model")
    table.add_column("top-1 %", justify="right")
    table.add_column("standard error", justify="right")
    table.add_row("always the largest class", f"{figures['majority']:.1f}", "")
    for contender in reversed(CONTENDERS):
        top1, error = figures["top1"][contender.name], figures["standard_error"][contender.name]
        table.add_row(contender.title, f"{top1:.1f}", f"{error:.1f}")
    console.print(table)


def _draw_sheet(folder: Path, images: Path, console: Console) -> Path:
    """Predictions of the fine-tuned model for some unseen photographs of every class."""
    files = _spread(images, per_class=6)
    predictions = list(predict_files(folder / "fine_tuned", files, 1, "auto"))
    sheet = folder / "predictions.png"
    prediction_sheet(
        [(p.path, p.path.parent.name, p.classes[0], p.probabilities[0]) for p in predictions],
        sheet,
        IMAGES_LICENCE,
    )
    console.print(f"predictions drawn in {sheet}", highlight=False)
    return sheet


def _spread(images: Path, per_class: int) -> Sequence[Path]:
    return [path for folder in sorted(images.iterdir()) for path in sorted(folder.iterdir())[:per_class]]
