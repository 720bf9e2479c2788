"""Plot a sweep as in the paper: accuracy over the option that varies, or over epochs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from beton_tools.base.atomic import atomic_path
from fastft.recipe.tables import Sweep
from fastft.search.sweep_results import Outcome

WIDTH, HEIGHT, DPI = 7.0, 4.2, 150
BELOW_BEST = 6.0  # percentage points shown below the best epoch; the warm-up would flatten the rest
SHIFT = 0.06  # horizontal offset between lines of a table, so that error bars do not overlap
# hollow and larger, so that a point of ours at the same place does not hide it
PAPER: dict[str, Any] = {
    "linestyle": "--",
    "marker": "o",
    "markerfacecolor": "none",
    "markersize": 11,
    "alpha": 0.7,
}
OURS: dict[str, Any] = {"marker": "o", "capsize": 3}
CURVES = {"ema": "w EMA", "raw": "w/o EMA"}  # as the paper's Figure 2 names them


def draw_plot(sweep: Sweep, outcomes: Sequence[Outcome], out: Path) -> None:
    """Write the PNG `out` atomically; rows without a result show the paper's point only."""
    panels = len(outcomes) if sweep.plot == "epochs" else 1
    figure, axes = plt.subplots(
        panels, 1, figsize=(WIDTH, HEIGHT * panels), squeeze=False, layout="constrained"
    )
    if sweep.plot == "epochs":
        for axis, outcome in zip(axes[:, 0], outcomes, strict=True):
            _draw_epochs(axis, outcome)
    else:
        _draw_labels(axes[0, 0], sweep, outcomes)
    figure.suptitle(f"{sweep.title} ({sweep.source})")
    with atomic_path(out) as partial:
        figure.savefig(partial, dpi=DPI)
    plt.close(figure)


def _draw_labels(axis: Axes, sweep: Sweep, outcomes: Sequence[Outcome]) -> None:
    places = {label: i for i, label in enumerate(sweep.labels)}
    line: dict[str, Any] = {} if sweep.plot == "lines" else {"linestyle": "none"}
    for i, series in enumerate(sweep.series):
        cells = [o for o in outcomes if o.row.series == series]
        colour, shift = f"C{i}", SHIFT * (i - (len(sweep.series) - 1) / 2)
        given = [(places[o.row.label] + shift, o.row.paper) for o in cells if o.row.paper is not None]
        if given:
            x, top1 = zip(*given, strict=True)
            axis.plot(x, top1, color=colour, label=f"{series} paper".strip(), **PAPER | line)
        found = [(places[o.row.label] + shift, o.ours.top1, o.ours.standard_error) for o in cells if o.ours]
        if found:
            x, top1, error = zip(*found, strict=True)
            axis.errorbar(x, top1, error, color=colour, label=f"{series} ours".strip(), **OURS | line)
    axis.set_xticks(range(len(places)), list(places))
    axis.set_xlim(-0.5, len(places) - 0.5)
    _finish(axis)


def _draw_epochs(axis: Axes, outcome: Outcome) -> None:
    for weights, name in CURVES.items():
        curve = outcome.curve(weights)
        if curve:
            axis.plot([s.epoch for s in curve], [s.top1 for s in curve], label=f"{name}, ours")
    paper, best = outcome.row.paper, outcome.ours
    if paper is not None:
        axis.axhline(paper, color="black", linestyle=":", label=f"best, paper {paper:g}")
    if best is not None:
        axis.set_ylim(bottom=max(axis.get_ylim()[0], best.top1 - BELOW_BEST))
    axis.set_title(outcome.row.title)
    axis.set_xlabel("epoch")
    _finish(axis)


def _finish(axis: Axes) -> None:
    axis.set_ylabel("top-1 (%)")
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
