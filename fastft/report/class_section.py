"""The part of a run's page about its classes: confusion matrix and reliability diagram."""

from collections.abc import Iterator

import numpy as np
from markupsafe import Markup

from fastft.evaluate.assessment import ClassReport
from fastft.report.charts import Chart, Series
from fastft.run.prediction_metrics import Calibration, Reliability

COUNTED_CELLS = 12  # with more classes the cells are too small for numbers
# CSS class, width and width of names in pixels, their characters
SIZES = (("wide", 520, 130, 16), ("narrow", 340, 96, 10))
LARGEST_GAP = 1  # pixels between cells
ROW = 12  # height of a line of text
NUMBER_ROW = 22  # height of the numbers above the columns


def reliability_chart(calibration: Calibration) -> Chart:
    """Accuracy over confidence, of the softmax and, where it helps, after temperature scaling; the diagonal is perfect."""
    series = [Series("perfect", "reference", [0, 100], [0, 100]), _series("softmax", "raw", calibration.plain)]
    if calibration.scaled is not None and calibration.scaled.ece < calibration.plain.ece:
        series.append(_series(f"temperature {calibration.temperature:.2f}", "ema", calibration.scaled))
    return Chart(
        "Reliability", "confidence, %", "accuracy of images with that confidence, %", series,
        from_zero=True, decimals=1, x_range=(0, 100),
    )  # fmt: skip


def _series(name: str, style: str, reliability: Reliability) -> Series:
    filled = reliability.images > 0
    confidence, accuracy = (100 * values[filled] for values in (reliability.confidence, reliability.accuracy))
    return Series(f"{name}, ECE {reliability.ece:.1f} %", style, confidence.tolist(), accuracy.tolist())


def confusion_picture(report: ClassReport) -> Markup:
    """The confusion matrix as a <figure>: a row per class, shaded by the share of its images; empty if there is none."""
    if report.matrix_KK is None:
        return Markup("")
    drawings = Markup("").join(_draw(report, report.matrix_KK, *size) for size in SIZES)
    return Markup(
        '<figure class="picture"><figcaption><b>Confusion</b> <span class="unit">rows: class, columns: prediction, in the same '
        "order; shade: share of the class's images</span></figcaption>{}</figure>"
    ).format(drawings)


def _draw(report: ClassReport, matrix_KK: np.ndarray, kind: str, width: int, left: int, longest: int) -> Markup:
    cell = (width - left) / len(matrix_KK)
    height = NUMBER_ROW + cell * len(matrix_KK)
    parts = [*_labels(report.names, cell, left, longest), *_cells(report.names, matrix_KK, cell, left)]
    return Markup(
        '<svg class="plot matrix {}" viewBox="0 0 {} {:.1f}" role="img" aria-label="Confusion matrix">{}</svg>'
    ).format(kind, width, height, Markup("").join(parts))


def _labels(names: list[str], cell: float, left: int, longest: int) -> Iterator[Markup]:
    """Names beside the rows and numbers above the columns; where cells are smaller than text, of some rows only."""
    every = max(1, int(np.ceil(ROW / cell)))
    for k in range(0, len(names), every):
        name = names[k] if len(names[k]) <= longest else f"{names[k][: longest - 1]}…"
        middle = NUMBER_ROW + (k + 0.5) * cell + 4
        yield Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="end">{} {}</text>').format(left - 6, middle, name, k + 1)
    # a number of three digits is twice as wide as a line is high
    every = max(1, int(np.ceil(2 * ROW / cell)))
    for k in range(0, len(names), every):
        yield Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            left + (k + 0.5) * cell, NUMBER_ROW - 7, k + 1
        )


def _cells(names: list[str], matrix_KK: np.ndarray, cell: float, left: int) -> Iterator[Markup]:
    """A square for each pair that occurs, with its number of images where that fits."""
    totals, side = matrix_KK.sum(1), cell - min(LARGEST_GAP, cell / 10)
    for i, j in zip(*np.nonzero(matrix_KK), strict=True):
        images, x, y = int(matrix_KK[i, j]), left + j * cell, NUMBER_ROW + i * cell
        share = images / totals[i]
        tip = f"{names[i]} predicted as {names[j]}: {images:,} of {int(totals[i]):,}"
        yield Markup(
            '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill-opacity="{:.2f}"><title>{}</title></rect>'
        ).format("right" if i == j else "wrong", x, y, side, side, 0.08 + 0.72 * share, tip)
        if len(matrix_KK) <= COUNTED_CELLS:
            yield Markup('<text class="count" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
                x + cell / 2, y + cell / 2 + 4, images
            )
