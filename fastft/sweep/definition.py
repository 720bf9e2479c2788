"""A sweep file: a published table as rows of recipe, label and accuracy.

title: Random erase probability     source: paper Table 7      plot: lines | points | epochs
rows:
  - {recipe: erase_0.yaml, label: 0.0, series: "", number: ema, paper: 85.6}
"""

from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from beton_tools.errors import UserError

NUMBERS = (
    "ema",
    "raw",
)  # the weights that a published number is of, at their best epoch
PLOTS = ("lines", "points", "epochs")  # x is a scale; x is a list of names; accuracy over epochs


@dataclass(frozen=True)
class Row:
    """One cell of the table: `label` is its column, `series` its line where the table has several."""

    recipe: Path
    label: str
    series: str = ""
    number: str = "ema"
    paper: float | None = None  # top-1 in percent; None where it is only drawn

    @property
    def name(self) -> str:
        return f"{self.series}, {self.label}" if self.series else self.label


@dataclass(frozen=True)
class Sweep:
    name: str
    title: str
    source: str
    rows: tuple[Row, ...]
    plot: str = "lines"

    @property
    def series(self) -> list[str]:
        """Lines of the table, in its order."""
        return list(dict.fromkeys(row.series for row in self.rows))

    @property
    def labels(self) -> list[str]:
        """Columns of the table, in its order."""
        return list(dict.fromkeys(row.label for row in self.rows))


def load_sweep(path: Path) -> Sweep:
    """Read and check a sweep file; `sweep.yaml` is named after its folder.

    Raises:
        UserError: missing, not YAML, an unknown or missing key, no such recipe, a cell that appears twice.
    """
    document = _read(path)
    _check_keys(str(path), document, {"title", "source", "rows"}, {"plot"})
    plot = document.get("plot", "lines")
    if plot not in PLOTS:
        raise UserError(f"{path}: plot is {plot!r}; it must be one of {', '.join(PLOTS)}")
    if not isinstance(document["rows"], list) or not document["rows"]:
        raise UserError(f"{path}: 'rows' must be a list of rows")
    rows = tuple(_row(path, i, entry) for i, entry in enumerate(document["rows"], 1))
    cells = [(row.series, row.label) for row in rows]
    twice = next((cell for cell in cells if cells.count(cell) > 1), None)
    if twice:
        shown = " ".join(filter(None, twice))
        raise UserError(f"{path}: two rows are labelled '{shown}'; give them different labels")
    name = path.resolve().parent.name if path.stem == "sweep" else path.stem
    return Sweep(name, str(document["title"]), str(document["source"]), rows, plot)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"sweep {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"sweep {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise UserError(f"sweep {path} must hold title, source and rows")
    return document


def _row(path: Path, position: int, entry: Any) -> Row:
    where = f"{path}, row {position}"
    if not isinstance(entry, dict):
        raise UserError(f"{where}: must hold 'key: value' pairs such as recipe and label")
    _check_keys(where, entry, {"recipe", "label"}, {f.name for f in fields(Row)})
    recipe = path.parent / str(entry["recipe"])
    if not recipe.is_file():
        near = get_close_matches(recipe.name, [p.name for p in recipe.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{where}: recipe {recipe} does not exist{hint}")
    number, paper = entry.get("number", "ema"), entry.get("paper")
    if number not in NUMBERS:
        raise UserError(f"{where}: number is {number!r}; it must be one of {', '.join(NUMBERS)}")
    if not (paper is None or (type(paper) in (int, float) and 0 <= paper <= 100)):
        raise UserError(f"{where}: paper is {paper!r}; it must be a top-1 in percent, or null")
    return Row(recipe, str(entry["label"]), str(entry.get("series", "")), number, paper)


def _check_keys(where: str, entry: dict[str, Any], needed: set[str], optional: set[str]) -> None:
    known = sorted(needed | optional)
    for key in entry:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"valid keys: {', '.join(known)}"
            raise UserError(f"{where}: unknown key '{key}'; {hint}")
    missing = sorted(needed - entry.keys())
    if missing:
        raise UserError(f"{where}: {' and '.join(missing)} missing")
