"""A contact sheet of predictions: every image with its predicted class, mistakes marked."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from PIL import Image

from beton_tools.base.atomic import atomic_path

Row = tuple[Path, str | None, str, float]  # image, true class if known, predicted class, its probability

RIGHT, WRONG, UNKNOWN = "#1a7f37", "#cf222e", "#57606a"
COLUMNS, CELL_INCHES = 6, 1.9


def prediction_sheet(rows: Sequence[Row], out: Path, footnote: str = "") -> None:
    """Draw `rows` as a grid and write the PNG `out`, which appears when complete."""
    lines = -(-len(rows) // COLUMNS)
    figure, axes = plt.subplots(
        lines, COLUMNS, figsize=(COLUMNS * CELL_INCHES, lines * (CELL_INCHES + 0.42) + 0.4), squeeze=False
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (path, truth, predicted, probability) in zip(axes.flat, rows, strict=False):
        with Image.open(path) as image:
            axis.imshow(image.convert("RGB"))
        colour = UNKNOWN if truth is None else RIGHT if truth == predicted else WRONG
        title = f"{predicted} {probability:.0%}"
        if truth is not None and truth != predicted:
            title += f"\nis {truth}"
        axis.set_title(title, fontsize=8, color=colour, pad=3)
    figure.text(0.5, 0.004, footnote, ha="center", va="bottom", fontsize=7, color=UNKNOWN)
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    with atomic_path(out) as partial:
        figure.savefig(partial, dpi=120)
    plt.close(figure)
