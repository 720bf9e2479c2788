"""Plot an average: the WiSE-FT curve, or the accuracy of models and soups."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: no global state, no display

from beton_tools.base.atomic import atomic_path
from fastft.evaluate.weight_average import WISE, Average, Row

SIZE, DPI = (6.4, 4.4), 150  # inches
NAMES = ("curve.svg", "curve.png")
INK, CURVE, CHOSEN = "#1f2933", "#2f6f8f", "#c2410c"


def draw_average(average: Average, folder: Path) -> list[Path]:
    """Write `curve.svg` and `curve.png` into a folder; nothing if no file was evaluated. Returns their paths."""
    if not average.data:
        return []
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    if average.method != WISE:
        _draw_models(axes, average)
    elif len(average.data) == 1:
        _draw_over_alpha(axes, average)
    else:
        _draw_trade_off(axes, average)
    axes.set_title(average.method, fontsize=11, color=INK)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    paths = [folder / name for name in NAMES]
    for path in paths:
        with atomic_path(path) as partial:
            figure.savefig(partial, dpi=DPI, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def _draw_over_alpha(axes: Axes, average: Average) -> None:
    alphas = [row.alpha or 0.0 for row in average.rows]
    errors = [row.scores[0].scores.standard_error for row in average.rows]
    top1 = [row.top1 for row in average.rows]
    axes.errorbar(alphas, top1, errors, marker="o", capsize=3, color=CURVE, label=average.data[0].name)
    if average.chosen is not None:
        axes.plot(average.alpha or 0.0, average.chosen.top1, "*", markersize=14, color=CHOSEN, label="kept")
    axes.set_xlabel("alpha: 0 is the start, 1 the end")
    axes.set_ylabel("top-1 (%)")


def _draw_trade_off(axes: Axes, average: Average) -> None:
    """Mean top-1 of the other files over that of the selection set, as the figures of WiSE-FT."""
    points = [(row.top1, _others(row)) for row in average.rows]
    axes.plot(*zip(*points, strict=True), marker="o", color=CURVE, label="alpha")
    for row, point in zip(average.rows, points, strict=True):
        axes.annotate(
            f"{row.alpha:g}", point, xytext=(4, 4), textcoords="offset points", fontsize=7, color=INK
        )
    if average.chosen is not None:
        axes.plot(
            average.chosen.top1, _others(average.chosen), "*", markersize=14, color=CHOSEN, label="kept"
        )
    axes.set_xlabel(f"top-1 of {average.data[0].name} (%)")
    axes.set_ylabel(_names_of_others(average.data))


def _others(row: Row) -> float:
    return float(np.mean([s.scores.top1 for s in row.scores[1:]]))


def _names_of_others(data: Sequence[Path]) -> str:
    others = [path.name for path in data[1:]]
    return f"top-1 of {others[0]} (%)" if len(others) == 1 else f"mean top-1 of {len(others)} other files (%)"


def _draw_models(axes: Axes, average: Average) -> None:
    for k, path in enumerate(average.data):
        scores = [row.scores[k].scores for row in average.rows]
        axes.errorbar([s.top1 for s in scores], range(len(scores)), xerr=[s.standard_error for s in scores], fmt="o",
                      capsize=3, label=path.name)  # fmt: skip
    axes.set_yticks(range(len(average.rows)), [row.name for row in average.rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("top-1 (%)")
