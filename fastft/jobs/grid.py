"""Sweeps from the command line: `fastft sweep photos --optim.lr=1e-4,3e-4` trains a run per value or combination."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console

from beton_tools.base.atomic import write_text
from beton_tools.base.console import compact_table, format_duration, print_table, printable
from beton_tools.base.errors import CORRECT, UserError, report_disk_errors
from beton_tools.read.beton_set import BetonSet
from fastft.recipe import load_recipe
from fastft.recipe.load import full_name
from fastft.recipe.recipe_file import find_file
from fastft.report.run_compare import PAGE, load_compared, result_rows, score_of, write_comparison
from fastft.run.evaluations import SCORE_NAMES

# these options' values may contain commas
NOT_SWEPT = {"data.train", "data.val", "augment.mean", "augment.std", "train.run_dir", "about.source"}
MOST_RUNS = 100
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9.=+,_-]+")


@dataclass(frozen=True)
class Grid:
    """A recipe, the options that have several values, and the command line without them.

    Attributes:
        recipe: as on the command line.
        values: option -> its values. At least one option has several.
        overrides: the other options.
    """

    recipe: str
    values: Mapping[str, Sequence[str]]
    overrides: Sequence[str]

    @property
    def name(self) -> str:
        """The name for the runs' folder, such as `photos-lr`."""
        return _in_names("-".join([Path(self.recipe).stem, *map(_short, self.values)]))

    @property
    def rows(self) -> list[dict[str, str]]:
        """Each run's options."""
        return [dict(zip(self.values, chosen, strict=True)) for chosen in itertools.product(*self.values.values())]

    def document(self) -> dict[str, object]:
        """The sweep file that trains the grid."""
        base = self.recipe
        if (file := Path(base)).is_file():  # a sweep file resolves relative paths from its own folder
            base = str(file.absolute())
        entries = [{"label": row_name(row), "name": _in_names(row_name(row)), "set": row} for row in self.rows]
        return {"title": self.name, "source": "your own runs", "named": True, "base": base, "rows": entries}


def read_grid(recipe: str, overrides: Sequence[str]) -> Grid:
    """Read the grid from a command line.

    Args:
        overrides: `--option=value`. Some have several values, separated by commas.

    Raises:
        UserError: no option has several values, a value is given twice, there are more than MOST_RUNS combinations, or
            the recipe does not accept one of them.
    """
    find_file(recipe)  # refuses an unknown recipe by its name
    values: dict[str, list[str]] = {}
    rest = []
    for text in overrides:
        key, _, value = text.removeprefix("--").partition("=")
        option, several = full_name(key), [part.strip() for part in value.split(",")]
        if len(several) == 1 or option in NOT_SWEPT:
            rest.append(text)
        elif len(set(several)) < len(several) or not all(several):
            raise UserError(f"{text}: give different values, such as --optim.lr=1e-4,3e-4,1e-3")
        else:
            values[option] = several
    if not values:
        raise UserError(
            f"{recipe} is a recipe. Give an option several values, such as --optim.lr=1e-4,3e-4,1e-3, or give a table"
        )
    grid = Grid(recipe, values, rest)
    if len(grid.rows) > MOST_RUNS:
        raise UserError(f"{len(grid.rows):,} combinations are more than {MOST_RUNS} runs. Give fewer values")
    for row in grid.rows:
        load_recipe(recipe, [*rest, *(f"--{option}={value}" for option, value in row.items())])
    return grid


def row_name(row: Mapping[str, str]) -> str:
    """Return a row's name, such as `lr=1e-4` or `lr=1e-4,epochs=20`."""
    return ",".join(f"{_short(option)}={value}" for option, value in row.items())


def write_grid(grid: Grid, folder: Path) -> Path:
    """Write the sweep file into the runs' folder, and return its path. Raises UserError if it cannot be written."""
    path = folder / f"{grid.name}.yaml"
    with report_disk_errors(path, CORRECT):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, yaml.safe_dump(grid.document(), sort_keys=False))
    return path


def print_comparison(folders: Sequence[Path], opened: Sequence[BetonSet], out: Path, console: Console) -> None:
    """Write the page that compares the runs, and print its table. opened: the runs' images that are already open."""
    runs = load_compared(folders, opened)
    score = score_of(runs)
    header = ["run", f"{SCORE_NAMES[score]} %", f"difference to {runs[0].name}", "time"]
    rows = []
    for row in result_rows(runs):
        error, paired = "" if row.error is None else f" ± {row.error:.2f}", row.paired
        rows.append(
            [
                row.compared.name,
                "-" if row.score is None else f"{row.score:.2f}{error}",
                "-" if paired is None else f"{paired.gain:+.2f} ± {paired.error:.2f}",
                "-" if row.cost is None else format_duration(row.cost.so_far.wall_seconds),
            ]
        )
    print_table(compact_table("differences are paired by image", header, rows), console)
    console.print(printable(f"written: {write_comparison(runs, out / PAGE)}"), highlight=False)


def _short(option: str) -> str:
    return option.rpartition(".")[2]


def _in_names(text: str) -> str:
    """Make a text usable as part of a file name."""
    return _NOT_IN_NAMES.sub("_", text)
