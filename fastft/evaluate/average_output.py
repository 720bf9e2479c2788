"""The result of an average: a table on the console, and a checkpoint with its figures beside it."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from beton_tools.base.atomic import check_writable, write_text
from beton_tools.base.console import printable
from beton_tools.base.errors import UserError
from fastft.evaluate.curve_plot import draw_average
from fastft.evaluate.trained import Trained
from fastft.evaluate.weight_average import Average
from fastft.recipe.constants import RAW
from fastft.run.checkpoint import MODEL_STATE, read_checkpoint, write_checkpoint
from fastft.run.chosen_weights import STEMS

RESULT = "average.json"


def check_out(out: Path) -> None:
    """Raise UserError if the average cannot be written as the folder `out`."""
    if out.exists():
        raise UserError(f"{out} exists; remove it, or give another --out")
    check_writable(out, makes_directories=True)


def write_average(average: Average, trained: Trained, out: Path) -> list[Path]:
    """Write the folder: a checkpoint, `average.json`, and the plot if files were evaluated. Returns the paths of the plot.

    Raises:
        UserError: the folder exists, or cannot be written.
    """
    check_out(out)
    stored = read_checkpoint(trained.path, needed=()).state
    state = {key: stored[key] for key in MODEL_STATE if key in stored}
    write_checkpoint(out, {**state, "average": average.as_dict()}, {STEMS[RAW]: average.state})
    try:
        write_text(out / RESULT, json.dumps(average.as_dict(), indent=1))
        return draw_average(average, out)
    except OSError as error:
        raise UserError(f"{out}: the figures cannot be written ({error.strerror or error})") from None


def print_average(average: Average, console: Console) -> None:
    """Print a row for each model and average, with the standard error of the selection set, and what was kept."""
    if average.data:
        table = Table("model", title="top-1 %", title_justify="left")
        for k, path in enumerate(average.data):
            selects = k == 0 and average.selection is not None
            table.add_column(
                Text(printable(path.name) + (" (selection)" if selects else "")), justify="right"
            )
        for row in average.rows:
            figures = (f"{s.scores.top1:.3f} ± {s.scores.standard_error:.3f}" for s in row.scores)
            kept = " *" if row is average.chosen else ""
            table.add_row(Text(printable(row.name) + kept), *figures)
        console.print(table)
    console.print(f"kept: {printable(average.describe())}", highlight=False, markup=False, soft_wrap=True)
