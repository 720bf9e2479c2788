"""The result of an average: a table on the console, and a checkpoint with its figures beside it."""

import json
from pathlib import Path

from rich.console import Console

from beton_tools.base.atomic import check_writable, scratch_folder, write_text
from beton_tools.base.console import compact_table, print_table
from beton_tools.base.errors import UserError
from fastft.evaluate.output import print_line
from fastft.evaluate.result_files import Line, Panel, save_plot
from fastft.evaluate.trained import Trained
from fastft.evaluate.weight_average import WISE, Average, Row
from fastft.recipe.constants import RAW
from fastft.run.checkpoint import MODEL_STATE, read_checkpoint, write_checkpoint
from fastft.run.chosen_weights import STEMS

RESULT, PLOTS = "average.json", ("curve.svg", "curve.png")
KEPT = {"marker": "*", "markersize": 14, "linestyle": "none", "color": "C1"}


def check_out(out: Path) -> None:
    """Raise UserError if the average cannot be written as the folder `out`."""
    if out.exists():
        raise UserError(f"{out} exists; remove it, or give another --out")
    check_writable(out, makes_directories=True)


def write_average(average: Average, trained: Trained, out: Path) -> list[Path]:
    """Write the folder: a checkpoint, `average.json`, and the plot if files were evaluated. Returns the paths of the plot.

    The folder appears when it is complete.

    Raises:
        UserError: it exists, or cannot be written.
    """
    check_out(out)
    stored = read_checkpoint(trained.path, needed=()).state
    state = {key: stored[key] for key in MODEL_STATE if key in stored} | {"average": average.as_dict()}
    names = PLOTS if average.data else ()
    try:
        with scratch_folder(out) as parent:
            folder = parent / out.name
            write_checkpoint(folder, state, {STEMS[RAW]: average.state})
            write_text(folder / RESULT, json.dumps(average.as_dict(), indent=1))
            if names:
                save_plot([_panel(average)], [folder / name for name in names], average.method)
            folder.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error}); nothing is kept") from None
    return [out / name for name in names]


def _panel(average: Average) -> Panel:
    """Soups: top-1 of every row on every file. WiSE-FT: over alpha, or the mean of the other files over the selection set."""
    rows, files = average.rows, average.data
    if average.method != WISE:
        lines = [
            Line(path.name, range(len(rows)), *_top1(rows, k), style={"linestyle": "none"})
            for k, path in enumerate(files)
        ]
        return Panel(lines, ticks=[row.name for row in rows])
    if len(files) == 1:
        lines = [Line(files[0].name, [row.alpha or 0.0 for row in rows], *_top1(rows, 0))]
        lines.append(Line("kept", [average.chosen.alpha or 0.0], [average.chosen.top1], style=KEPT))
        return Panel(lines, "alpha: 0 is the start, 1 the end")
    lines = [
        Line("alpha", [row.top1 for row in rows], [_others(row) for row in rows]),
        Line("kept", [average.chosen.top1], [_others(average.chosen)], style=KEPT),
    ]
    others = files[1].name if len(files) == 2 else f"{len(files) - 1} other files"
    return Panel(
        lines,
        f"top-1 of {files[0].name} (%)",
        f"mean top-1 of {others} (%)",
        notes=[(row.top1, _others(row), f"{row.alpha:g}") for row in rows],
    )


def _top1(rows: list[Row], file: int) -> tuple[list[float], list[float]]:
    """(top-1, its standard error) of every row on one file."""
    scores = [row.scores[file].scores for row in rows]
    return [s.top1 for s in scores], [s.standard_error for s in scores]


def _others(row: Row) -> float:
    """Mean top-1 of the files after the selection set."""
    return sum(s.scores.top1 for s in row.scores[1:]) / (len(row.scores) - 1)


def print_average(average: Average, console: Console) -> None:
    """Print a row for each model and average, with the standard error of the selection set, and what was kept."""
    if average.data:
        first = " (selection)" if average.selection is not None else ""
        names = [path.name + (first if k == 0 else "") for k, path in enumerate(average.data)]
        rows = [
            [
                row.name + (" *" if row is average.chosen else ""),
                *(f"{s.scores.top1:.3f} ± {s.scores.standard_error:.3f}" for s in row.scores),
            ]
            for row in average.rows
        ]
        print_table(compact_table("top-1 %", ["model", *names], rows), console)
    print_line(console, f"kept: {average.describe()}")
