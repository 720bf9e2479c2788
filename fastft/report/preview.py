"""`fastft preview`: draw augmented training images: each original with its crop, the result, and its ops."""

import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill, shorten
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from beton_tools.base.atomic import atomic_path, write_text
from beton_tools.base.console import printable
from beton_tools.read.beton_paths import BetonPaths
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.sample_table import SampleTable
from beton_tools.write.images import decode_sample
from fastft.augment import AugmentPolicy, describe_row, draw_plan, plan_to_json, source_regions
from fastft.augment.cpu import CpuAugment

PAIRS_PER_LINE = 3
CELL_INCHES = 2.1
CROP_COLOUR = "#ff3b30"
LONGEST_NAME = 24  # characters above a picture
CAPTION_WIDTH = 36  # characters below a picture


def write_preview(
    data: BetonPaths,
    policy: AugmentPolicy,
    size: int,
    *,
    seed: int,
    epoch: int,
    count: int,
    out: Path,
    plan_out: Path | None = None,
) -> None:
    """Draw `count` samples spread evenly over `.beton` files to the PNG `out`, and their plan as JSON to `plan_out`.

    Raises:
        UserError: no such file, or one that is no `.beton`.
    """
    betons = BetonSet.open(data)
    samples = np.linspace(0, len(betons) - 1, min(count, len(betons))).astype(np.int64)
    classes = betons.class_names
    names = [classes[k] for k in betons.labels[samples].tolist()]
    plan, images = carry_out(betons, policy, size, seed=seed, epoch=epoch, samples=samples)
    draw_preview(betons, plan, images, out, names)
    if plan_out is not None:
        write_plan(plan, plan_out)


def carry_out(
    betons: SampleTable, policy: AugmentPolicy, size: int, *, seed: int, epoch: int, samples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(plan, images): the plan that training draws for these samples in this epoch, and the resulting images.

    images: uint8 (B, size, size, 3), normalised values brought back to 0..255.
    """
    heights, widths = betons.heights[samples], betons.widths[samples]
    plan = draw_plan(
        policy, seed=seed, epoch=epoch, sample_ids=samples, heights=heights, widths=widths, size=size
    )
    regions = source_regions(plan, size)
    pieces = [
        decode_sample(betons, int(i))[y : y + h, x : x + w].reshape(-1)
        for i, (y, x, h, w) in zip(samples, regions.tolist(), strict=True)
    ]
    offsets = np.cumsum([0, *(len(p) for p in pieces[:-1])])
    normalised = CpuAugment(policy, size)(np.concatenate(pieces), offsets, plan)
    pixels = 255 * (normalised * np.asarray(policy.std) + np.asarray(policy.mean))
    return plan, pixels.round().clip(0, 255).astype(np.uint8)


def draw_preview(
    betons: SampleTable, plan: np.ndarray, images: np.ndarray, out: Path, names: Sequence[str]
) -> None:
    """Write the grid as a PNG, atomically; `names` are the samples' classes."""
    lines = -(-len(plan) // PAIRS_PER_LINE)
    figure, axes = plt.subplots(
        lines,
        2 * PAIRS_PER_LINE,
        figsize=(2 * PAIRS_PER_LINE * CELL_INCHES, lines * (CELL_INCHES + 0.65)),
        squeeze=False,
    )
    for axis in axes.flat:
        axis.set_axis_off()
        axis.set_anchor("S")
    for row, image, name, (left, right) in zip(plan, images, names, axes.reshape(-1, 2), strict=False):
        _draw_original(left, decode_sample(betons, int(row["sample"])), row, name)
        right.imshow(image)
        words = fill(", ".join(describe_row(row)) or "crop only", CAPTION_WIDTH)
        right.text(0.5, -0.03, words, transform=right.transAxes, ha="center", va="top", fontsize=6.5)
    figure.tight_layout()
    with atomic_path(out) as partial:
        figure.savefig(partial, dpi=130)
    plt.close(figure)


def write_plan(plan: np.ndarray, out: Path) -> None:
    """The plan as JSON, one object per image."""
    write_text(out, json.dumps(plan_to_json(plan), indent=1))


def _draw_original(axis: Axes, pixels: np.ndarray, row: Any, name: str) -> None:
    y, x, h, w = (int(v) for v in row["crop"])
    axis.imshow(pixels)
    axis.add_patch(Rectangle((x - 0.5, y - 0.5), w, h, fill=False, edgecolor=CROP_COLOUR, linewidth=1.5))
    # ImageNet's names list synonyms
    short = shorten(printable(name.split(",")[0]), LONGEST_NAME, placeholder="…")
    axis.set_title(f"{short}, sample {row['sample']}", fontsize=6.5, pad=3)
