"""Train three models on a photo folder: fine-tuned, linear probe on the frozen tower, random initialisation."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from msgspec.structs import replace
from PIL import Image
from rich.console import Console

from beton_tools.base.atomic import save_picture
from beton_tools.base.console import compact_table, print_table
from beton_tools.base.errors import UserError
from beton_tools.base.typed_json import Document
from beton_tools.inspect.extract import Cell, draw_grid
from beton_tools.read.format import Beton
from fastft.evaluate.evaluation import evaluate_file
from fastft.evaluate.predictor import predict_files
from fastft.jobs.demo_files import IMAGES, IMAGES_LICENCE, WEIGHTS, extract_cells, fetch, write_backbone
from fastft.jobs.run import run_recipe
from fastft.machine.facts import cpu_name
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import AskedRecipe, load_recipe
from fastft.report.preview import SIDE
from fastft.run.result import Result
from fastft.train.progress import conclusion

PER_CLASS = {"val": 120, "train": 400}  # at most this many cells per class and split
RIGHT, WRONG = "#1a7f37", "#cf222e"
SHOWN = 6  # pictures per class on the sheet. There are as many columns


@dataclass(frozen=True)
class DemoTraining:
    """One run in the demo: its name, and the options that differ from the recipe."""

    name: str
    title: str
    overrides: str


CONTENDERS = (
    DemoTraining("fine_tuned", "fine-tuned with the recipe", ""),
    # ridge regression fits the head, and an epoch with learning rate 0 leaves it unchanged
    DemoTraining(
        "linear",
        "linear probe on the untouched tower",
        "--model.trainable_layers=0 --schedule.epochs=1 --optim.lr=0 --schedule.min_lr=0 --ema.decay=0",
    ),
    # Without pretrained weights, all blocks train at almost the same lr. Augmentation is as weak as the recipe makes it
    # with its linear probe. It trains for half the epochs, to save time.
    DemoTraining(
        "random",
        "random initialisation, half the epochs",
        "--model.weights=random --model.head_init=small --model.freeze_conv1=false --augment.policy=none --augment.scale_min=1 "
        "--optim.lr=1e-3 --optim.layer_decay=0.8 --schedule.epochs=4",
    ),
)


class DemoFigures(Document):
    """The content of figures.json: results by contender, in percent and percentage points, with standard errors.

    Attributes:
        train_images, n: how many images were trained on and evaluated.
        majority: accuracy when always predicting the largest class.
        gain: the fine-tuned model's gain over each other contender.
        seconds: each run's duration, on this processor at this image size.
        conclusion: the last lines in the fine-tuned run's log.
    """

    train_images: int
    n: int
    majority: float
    top1: dict[str, float]
    standard_error: dict[str, float]
    gain: dict[str, float]
    gain_standard_error: dict[str, float]
    image_size: int = 0
    seconds: dict[str, float] = msgspec.field(default_factory=dict)
    cpu: str = ""
    date: str = ""
    conclusion: str = ""


def run_demo(recipe: str | Path, cache: Path, folder: Path, console: Console) -> DemoFigures:
    """Fetch the data, train and compare the models, write `folder/predictions.png`, and return the results."""
    loaded = load_recipe(recipe)
    recipe_arch(loaded)  # an invalid recipe fails before anything is downloaded
    weights = write_backbone(fetch(WEIGHTS, cache), cache)
    photos = folder / "images"
    extract_cells(fetch(IMAGES, cache), photos, PER_CLASS)
    converted = folder / CONTENDERS[0].name / "data"
    betons = {split: converted / f"{split}.beton" for split in PER_CLASS}
    data = [f"--data.train={photos}"]  # converted by the first run, for all runs
    right, results = {}, {}
    for contender in CONTENDERS:
        console.rule(contender.title)
        run = folder / contender.name
        overrides = [*data, f"--model.weights={weights}", *contender.overrides.split(), f"--train.run_dir={run}"]
        results[contender.name] = _train(load_recipe(recipe, overrides), run, console)
        right[contender.name] = evaluate_file(run, betons["val"], loaded.train.device)[1].predictions.right_N
        data = [f"--data.{split}={path}" for split, path in betons.items()]
    figures = compare(right, Beton.open(betons["val"]).labels, len(Beton.open(betons["train"])))
    size, day = loaded.model.image_size, time.strftime("%Y-%m-%d")
    seconds = {name: result.seconds for name, result in results.items()}
    figures = replace(figures, image_size=size, seconds=seconds, cpu=cpu_name(), date=day)
    figures = replace(figures, conclusion=conclusion(results["fine_tuned"]))
    text = json.dumps(msgspec.to_builtins(figures), indent=1) + "\n"
    (folder / "figures.json").write_text(text, encoding="utf-8")
    _print_table(figures, console)
    console.print(
        "to train this tower on your own photographs: fastft train demo --data.train=PHOTOS "
        f"--model.weights={weights} --schedule.epochs=auto --train.run_dir=runs/mine",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    _draw_sheet(folder, photos / "val", console)
    return figures


def _train(recipe: AskedRecipe, run: Path, console: Console) -> Result:
    old = (run / "recipe.yaml").exists()
    try:
        return run_recipe(recipe, console)[1]
    except UserError as error:
        if not old:
            raise
        raise UserError(f"{error}. Or delete {run.parent}, which an older demo may have left") from None


def compare(right: Mapping[str, np.ndarray], labels: np.ndarray, trained_on: int) -> DemoFigures:
    """Compute each contender's top-1 and the fine-tuned model's gain, in percent (points) with standard errors.

    Gains are computed image by image, because the contenders see the same images. Their standard error is therefore
    smaller than for two independent samples.

    Args:
        right: contender -> bool (N,), True where it classified the image correctly.
    """
    n = len(labels)
    gains = {name: right["fine_tuned"].astype(float) - r for name, r in right.items() if name != "fine_tuned"}
    return DemoFigures(
        train_images=trained_on,
        n=n,
        majority=100 * float(np.bincount(labels).max()) / n,
        top1={name: 100 * float(r.mean()) for name, r in right.items()},
        standard_error={name: 100 * float(r.std()) / n**0.5 for name, r in right.items()},
        gain={name: 100 * float(g.mean()) for name, g in gains.items()},
        gain_standard_error={name: 100 * float(g.std()) / n**0.5 for name, g in gains.items()},
    )


def _print_table(figures: DemoFigures, console: Console) -> None:
    rows = [["always the largest class", f"{figures.majority:.1f}", "", ""]]
    for contender in reversed(CONTENDERS):
        rows.append([contender.title, *figure_cells(figures, contender.name)])
    title = f"{figures.n} held-out photographs, ± standard error"
    print_table(compact_table(title, ["model", "top-1 %", "recipe gains", "min"], rows), console)


def figure_cells(figures: DemoFigures, name: str) -> list[str]:
    """Format a contender's top-1, the gain from fine-tuning, and its minutes."""
    top1 = f"{figures.top1[name]:.1f} ± {figures.standard_error[name]:.1f}"
    gain = ""
    if name in figures.gain:
        gain = f"{figures.gain[name]:+.1f} ± {figures.gain_standard_error[name]:.1f}"
    return [top1, gain, f"{figures.seconds[name] / 60:.1f}"]


def _draw_sheet(folder: Path, images: Path, console: Console) -> Path:
    """Draw the fine-tuned model's predictions for some unseen photos from every class. Mistakes are marked."""
    files = [path for name in sorted(images.iterdir()) for path in sorted(name.iterdir())[:SHOWN]]
    cells = []
    for p in predict_files(folder / "fine_tuned", files, 1, "cpu"):
        truth, predicted = p.path.parent.name, p.classes[0]
        caption = f"{predicted} {p.probabilities[0]:.0%}"
        with Image.open(p.path) as image:
            picture = image.convert("RGB")
        if predicted == truth:
            cells.append(Cell(picture, caption, RIGHT))
        else:
            cells.append(Cell(picture, f"{caption}, is {truth}", WRONG))
    sheet = folder / "predictions.png"
    save_picture(sheet, draw_grid(cells, SHOWN, SIDE, IMAGES_LICENCE).save)
    console.print(f"predictions drawn in {sheet}", highlight=False)
    return sheet
