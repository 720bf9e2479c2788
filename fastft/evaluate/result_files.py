"""The files of sweeps, searches and averages: tables in Markdown, figures in JSON, and line plots by matplotlib."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # not pyplot: no global state, no display

from beton_tools.base.atomic import atomic_path, write_text
from beton_tools.base.errors import UserError

TABLE, DOCUMENT, PLOT = "table.md", "results.json", "plot.png"
WRITTEN = f"{TABLE}, {DOCUMENT}, {PLOT}"
WIDTH, HEIGHT, DPI = 7.0, 4.2, 150  # inches of a panel


@dataclass(frozen=True)
class Line:
    """Points (x, y) with standard errors of y, if given; style: keyword arguments of matplotlib's errorbar."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None
    style: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """Lines in one coordinate system. ticks: names of x = 0, 1, ... instead of numbers. notes: (x, y, text) beside points."""

    lines: Sequence[Line]
    x_label: str = ""
    y_label: str = "top-1 (%)"
    title: str = ""
    ticks: Sequence[str] = ()
    notes: Sequence[tuple[float, float, str]] = ()
    bottom: float | None = None  # of the y range, at least


def save_plot(panels: Sequence[Panel], paths: Sequence[Path], title: str = "") -> None:
    """Draw the panels below each other and write them, each file atomically in the format of its suffix.

    Raises:
        OSError: a file cannot be written.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT * len(panels)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        for line in panel.lines:
            style = {"marker": "o", "capsize": 3, **line.style}
            axes.errorbar(line.x, line.y, line.error, label=line.label or None, **style)
        for x, y, text in panel.notes:
            axes.annotate(text, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
        if panel.ticks:
            rotation = 0 if sum(map(len, panel.ticks)) < 80 else 30
            axes.set_xticks(
                range(len(panel.ticks)), panel.ticks, rotation=rotation, ha="right" if rotation else "center"
            )
            axes.set_xlim(-0.5, len(panel.ticks) - 0.5)
        if panel.bottom is not None:
            axes.set_ylim(bottom=max(axes.get_ylim()[0], panel.bottom))
        axes.set(xlabel=panel.x_label, ylabel=panel.y_label, title=panel.title)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.suptitle(title)
    for path in paths:
        with atomic_path(path) as partial:
            figure.savefig(partial, dpi=DPI, metadata={"Date": None} if path.suffix == ".svg" else None)


def write_results(
    folder: Path, parts: Sequence[str], document: Mapping[str, Any], panels: Sequence[Panel], title: str = ""
) -> None:
    """Write the three files, each atomically. parts: of the Markdown page. panels, title: of the plot.

    Raises:
        UserError: the disk is full or fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / TABLE, "\n\n".join(parts) + "\n")
        write_text(folder / DOCUMENT, json.dumps(document, indent=1) + "\n")
        save_plot(panels, [folder / PLOT], title)
    except OSError as error:
        raise unwritable(folder, error) from None


def unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path}: cannot be written ({error.strerror or error}); free some space, the same command continues"
    )
