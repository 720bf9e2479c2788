"""Plots of the statistics of a `.beton`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure  # not pyplot: no global state, no display
from matplotlib.layout_engine import ConstrainedLayoutEngine

from beton_tools.base.atomic import save_picture
from beton_tools.base.console import format_bytes, printable
from beton_tools.read.format import Beton

_INK, _ACCENT, _PALE = "#1f2933", "#2f6f8f", "#9fc3d3"
_BLUES = LinearSegmentedColormap.from_list("density", ["#c9dfe9", "#5b9dbb", "#123f56"])
_TAIL = 99  # percentile above which bytes per image share the last bar


def plot(beton: Beton, numbers: dict[str, Any], out: Path) -> None:
    """Plot resolutions, bytes per image, images per class and subsampling to one PNG.

    Args:
        numbers: the result of `stats.compute`.

    Raises:
        UserError: the file cannot be written.
    """
    figure = Figure(figsize=(11, 7.5), layout=ConstrainedLayoutEngine(hspace=0.08, wspace=0.06))
    name, total = printable(beton.path.name), format_bytes(numbers["file_size"])
    headline = f"{name}   {len(beton):,} images, {numbers['num_classes']:,} classes, {total}"
    figure.suptitle(headline, fontsize=13, color=_INK, x=0.01, ha="left", weight="bold")
    axes = figure.subplots(2, 2)
    _plot_resolutions(axes[0, 0], beton)
    _plot_bytes(axes[0, 1], beton)
    _plot_classes(axes[1, 0], beton)
    _plot_subsampling(axes[1, 1], numbers["jpeg"])
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9, colors=_INK)
        for text in (axis.title, axis.xaxis.label, axis.yaxis.label):
            text.set(color=_INK, fontsize=10)
    # without a suffix, Matplotlib would write to another name
    save_picture(out, lambda partial: figure.savefig(partial, dpi=130, format=out.suffix[1:] or "png"))


def _plot_resolutions(axis: Any, beton: Beton) -> None:
    sides = [beton.widths.astype(np.int64), beton.heights.astype(np.int64)]
    limit = max(float(np.percentile(side, 99.5)) for side in sides) * 1.05
    bins = np.linspace(0, limit, 50)
    axis.hist2d(*sides, bins=[bins, bins], norm=LogNorm(), cmap=_BLUES)
    axis.set(title="Resolution (darker: more images)", xlabel="width, pixels", ylabel="height, pixels")
    axis.set_aspect("equal", adjustable="box")


def _plot_bytes(axis: Any, beton: Beton) -> None:
    kilobytes = beton.sizes / 1000
    axis.hist(np.minimum(kilobytes, np.percentile(kilobytes, _TAIL)), bins=40, color=_PALE)
    median, mean = float(np.median(kilobytes)), float(kilobytes.mean())
    axis.axvline(median, color=_ACCENT, linewidth=1.5)
    label = f" median {median:,.0f} kB, mean {mean:,.0f} kB"
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
    axis.text(
        median,
        1.0,
        label,
        transform=axis.get_xaxis_transform(),
        va="top",
        fontsize=9,
        color=_ACCENT,
        bbox=box,
    )
    title = f"Bytes per image (last bar: the largest {100 - _TAIL} %)"
    axis.set(title=title, xlabel="kB", ylabel="images", ylim=(0, axis.get_ylim()[1] * 1.08))


def _plot_classes(axis: Any, beton: Beton) -> None:
    counts = np.sort(np.unique(beton.labels, return_counts=True)[1])[::-1]
    axis.fill_between(np.arange(len(counts) + 1), np.append(counts, counts[-1]), step="post", color=_PALE)
    axis.set(title="Images per class, largest first", xlabel="classes", ylabel="images")
    axis.set(xlim=(0, len(counts)), ylim=(0, counts[0] * 1.15))
    axis.yaxis.get_major_locator().set_params(integer=True)


def _plot_subsampling(axis: Any, shares: dict[str, Any]) -> None:
    kinds = dict(reversed(shares["subsampling"].items())) or {"raw": 1.0}
    bars = axis.barh(list(kinds), [100 * share for share in kinds.values()], color=_PALE, height=0.6)
    axis.bar_label(bars, fmt="%.1f %%", padding=4, fontsize=9, color=_INK)
    title = f"Chroma subsampling; {100 * shares['indexed']:.0f} % with crop index"
    axis.set(title=title, xlabel="% of images", xlim=(0, 115), xticks=range(0, 101, 20))
