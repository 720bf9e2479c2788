"""`fastft preview`: draw augmented training images, each as the original with its crop, the result, and its ops."""

from pathlib import Path
from textwrap import shorten

import numpy as np
from PIL import Image, ImageDraw

from beton_tools.base.atomic import save_picture
from beton_tools.base.console import printable
from beton_tools.inspect.extract import Cell, draw_grid
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.sample_table import SampleTable, classes_of
from beton_tools.write.images import decode_sample
from fastft.augment.cpu import CpuAugment
from fastft.augment.describe import describe_row
from fastft.augment.draw import draw_plan
from fastft.augment.policies import AugmentPolicy
from fastft.augment.recipe_policy import build_policy
from fastft.augment.resize import source_regions
from fastft.recipe import Recipe

PAIRS_PER_LINE = 3
SIDE = 260  # a picture's size in pixels
CROP_COLOUR = "#ff3b30"
LONGEST_NAME = 24  # characters shown for a class name


def write_preview(recipe: Recipe, epoch: int, count: int, out: Path) -> None:
    """Draw `count` samples, spread evenly over the recipe's training files, to the picture `out`.

    Raises UserError if a file is missing or is not a `.beton`.
    """
    by_position, size = recipe.data.classes_by_position, recipe.model.image_size
    betons = BetonSet.open(str(recipe.data.train), classes_by_position=by_position)
    samples = np.linspace(0, len(betons) - 1, min(count, len(betons))).astype(np.int64)
    plan, images = carry_out(betons, build_policy(recipe), size, seed=recipe.train.seed, epoch=epoch, samples=samples)
    cells = []
    for row, image in zip(plan, images, strict=True):
        of_image = classes_of(betons.labels[row["sample"]])
        name = "; ".join(betons.class_names[k].split(",")[0] for k in of_image)  # ImageNet's class names list synonyms
        name = shorten(printable(name), LONGEST_NAME, placeholder="...")
        cells.append(Cell(_original(betons, row), f"{name}, sample {row['sample']}"))
        cells.append(Cell(Image.fromarray(image), ", ".join(describe_row(row)) or "crop only"))
    save_picture(out, draw_grid(cells, 2 * PAIRS_PER_LINE, SIDE).save)


def carry_out(
    betons: SampleTable, policy: AugmentPolicy, size: int, *, seed: int, epoch: int, samples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (plan, images): the plan that training draws for these samples in this epoch, and the resulting images.

    images: uint8 (B, size, size, 3), with normalised values brought back to 0..255.
    """
    heights, widths = betons.heights[samples], betons.widths[samples]
    plan = draw_plan(policy, seed=seed, epoch=epoch, sample_ids=samples, heights=heights, widths=widths, size=size)
    regions = source_regions(plan, size)
    pieces = [
        decode_sample(betons, int(i))[y : y + h, x : x + w].reshape(-1)
        for i, (y, x, h, w) in zip(samples, regions.tolist(), strict=True)
    ]
    offsets = np.cumsum([0, *(len(p) for p in pieces[:-1])])
    normalised = CpuAugment(policy, size)(np.concatenate(pieces), offsets, plan)
    pixels = 255 * (normalised * np.asarray(policy.std) + np.asarray(policy.mean))
    return plan, pixels.round().clip(0, 255).astype(np.uint8)


def _original(betons: SampleTable, row: np.void) -> Image.Image:
    """Return the image with a frame round its crop, at a cell's size."""
    image = Image.fromarray(decode_sample(betons, int(row["sample"])))
    y, x, h, w = (int(v) for v in row["crop"])
    scale = SIDE / max(image.size)
    image = image.resize([max(1, round(scale * n)) for n in image.size], Image.Resampling.LANCZOS)
    box = [round(scale * v) for v in (x, y, x + w, y + h)]
    right, bottom = max(box[0], box[2] - 1), max(box[1], box[3] - 1)
    ImageDraw.Draw(image).rectangle((box[0], box[1], right, bottom), outline=CROP_COLOUR, width=2)
    return image
