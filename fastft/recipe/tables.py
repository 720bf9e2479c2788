"""Sweep files: published tables whose rows are recipes. docs/recipes.md has an example and explains the keys."""

import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from beton_tools.base.errors import UserError
from fastft.recipe.yaml_file import one_line, read_yaml, shown

EXPECTED = "a sweep file with title, source and rows (YAML)"
NUMBERS = ("ema", "raw")  # which weights a published result is for, at their best epoch
EMPTY = ("", "null", "none", "~")
ROW_KEYS = {"label", "series", "recipe", "set", "name", "number", "paper"}
_REFERENCE = re.compile(r"(.+?\.ya?ml|[^\[\]/]+)\[(.+)\]", re.DOTALL)
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9.+-]+")


@dataclass(frozen=True)
class Row:
    """One cell of the table."""

    label: str
    series: str = ""
    recipe: str | None = None  # recipe or row that this row starts from. None: the table's base
    values: Mapping[str, Any] = field(default_factory=dict)  # `section.option` -> value as written
    name: str | None = None  # the recipe's name. None if the row is another recipe unchanged
    number: str = "ema"
    paper: float | None = None  # top-1 in percent. None if the paper gives no value

    @property
    def title(self) -> str:
        return f"{self.series}, {self.label}" if self.series else self.label


@dataclass(frozen=True)
class Sweep:
    name: str
    title: str
    source: str
    rows: tuple[Row, ...]
    path: Path
    base: str | None = None
    selected: Row | None = None  # the only row to train. None: all
    named: bool = False  # run directories are named after the rows, not by a key

    @property
    def series(self) -> list[str]:
        """The table's lines, in its order."""
        return list(dict.fromkeys(row.series for row in self.rows))

    @property
    def labels(self) -> list[str]:
        """The table's columns, in its order."""
        return list(dict.fromkeys(row.label for row in self.rows))

    def reference(self, row: Row) -> str:
        """Name the row as `load_recipe` takes it: FILE[LABEL], or FILE[SERIES, LABEL] if several rows share the label."""
        several = sum(other.label == row.label for other in self.rows) > 1
        return f"{self.path}[{row.title if several else row.label}]"


def split_reference(reference: str) -> tuple[str, str | None]:
    """Split FILE[ROW] into (file or name, row). The row is None without brackets."""
    match = _REFERENCE.fullmatch(reference)
    return (match[1], match[2]) if match else (reference, None)


def is_sweep(document: Mapping[str, Any]) -> bool:
    """True for a sweep file's contents, even with mistakes in it. False for a recipe's contents."""
    return not {"title", "rows"}.isdisjoint(document)


def load_sweep(path: Path) -> Sweep:
    """Read and check a sweep file. It is named after its stem, or `sweep.yaml` after its folder.

    Raises:
        UserError: unreadable, an unknown or missing key, or a cell that appears twice.
    """
    document = read_yaml(path, EXPECTED)
    if not is_sweep(document):
        raise UserError(f"{path} is not a table, because it has no title, source and rows")
    _check_keys(str(path), document, {"title", "source", "rows"}, {"base", "set", "named"})
    if not isinstance(document["rows"], list) or not document["rows"]:
        raise UserError(f"{path}: 'rows' must be a list with at least one row")
    name = Path(os.path.realpath(path)).parent.name if path.stem == "sweep" else path.stem
    base, common = _text(str(path), document, "base"), _options(str(path), document)
    entries = enumerate(document["rows"], 1)
    rows = tuple(_row(f"{path}, row {i}", name, entry, base, common) for i, entry in entries)
    cells = Counter((row.series, row.label) for row in rows)
    twice = next((row for row in rows if cells[row.series, row.label] > 1), None)
    if twice:
        raise UserError(f"{path}: two rows are labelled '{twice.title}'. Give them different labels")
    title, source = (_text(str(path), document, key) or "" for key in ("title", "source"))
    named = str(document.get("named", "false")).lower() in ("true", "yes", "on")
    if named and (unnamed := next((row for row in rows if row.name is None), None)):
        raise UserError(f"{path}: row '{unnamed.title}' has no name, and named is true. Give it one")
    return Sweep(name, title, source, rows, path, base, named=named)


def select_row(sweep: Sweep, text: str) -> Sweep:
    """Return the sweep with one row selected by its label, by 'series, label', or by its recipe's name.

    Raises:
        UserError: no such row (with the nearest one), or several.
    """
    keys = (lambda row: row.title, lambda row: row.label, lambda row: row.name)
    for key in keys:
        rows = [row for row in sweep.rows if key(row) == text]
        if len(rows) == 1:
            return replace(sweep, selected=rows[0])
        if rows:
            titles = " or ".join(f"'{row.title}'" for row in rows)
            raise UserError(f"{sweep.path}: '{text}' matches {len(rows)} rows. Write {titles}")
    known = dict.fromkeys(str(key(row)) for row in sweep.rows for key in keys if key(row))
    near = get_close_matches(text, known, n=1, cutoff=0.4)
    hint = f"Did you mean '{near[0]}'?" if near else f"Its rows are {_rows(sweep)}"
    raise UserError(f"{sweep.path} has no row '{text}'. {hint}")


def row_needed(sweep: Sweep) -> UserError:
    """Return the error for a table in a place that needs a recipe."""
    first = sweep.reference(sweep.rows[0])
    return UserError(f"{sweep.path} is a table, not a recipe. Name a row, such as '{first}' (rows: {_rows(sweep)})")


def _rows(sweep: Sweep) -> str:
    titles = [f"'{row.title}'" for row in sweep.rows]
    return ", ".join(titles[:8]) + (f" and {len(titles) - 8} more" if len(titles) > 8 else "")


def _row(where: str, table: str, entry: Any, base: str | None, common: Mapping[str, Any]) -> Row:
    """Read a row. common: options for all rows that start from the base."""
    if not isinstance(entry, dict):
        raise UserError(f"{where}: must hold 'key: value' pairs such as label and set")
    _check_keys(where, entry, {"label"} if base else {"label", "recipe"}, ROW_KEYS)
    values = _options(where, entry)
    if "recipe" not in entry:
        values = {**common, **values}
    row = Row(
        label=_text(where, entry, "label") or "",
        series=_text(where, entry, "series") or "",
        recipe=_text(where, entry, "recipe"),
        values=values,
        name=_text(where, entry, "name"),
        number=_text(where, entry, "number") or "ema",
        paper=_percent(where, entry.get("paper", "")),
    )
    if row.number not in NUMBERS:
        raise UserError(f"{where}: number is {row.number!r}. It must be one of {', '.join(NUMBERS)}")
    if row.name is None and values:
        row = replace(row, name=_NOT_IN_NAMES.sub("_", f"{table} {row.title}"))
    if row.name is not None and ("/" in row.name or row.name in (".", "..")):
        raise UserError(f"{where}: name is {row.name!r}. It must be usable as a folder name")
    return row


def _options(where: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    values = entry.get("set", {})
    if not isinstance(values, dict):
        raise UserError(f"{where}: set must hold options such as {{optim.lr: 1e-4}}")
    return values


def _text(where: str, entry: Mapping[str, Any], key: str) -> str | None:
    value = entry.get(key)
    try:
        return None if value is None else one_line(value)
    except (AttributeError, ValueError):  # not a text, or more than one line
        raise UserError(f"{where}: {key} is {shown(value)}. It must be a text on one line") from None


def _percent(where: str, value: Any) -> float | None:
    if isinstance(value, str) and value.lower() in EMPTY:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 100:
        raise UserError(f"{where}: paper is {shown(value)}. It must be a top-1 in percent, or null")
    return number


def _check_keys(where: str, entry: Mapping[str, Any], needed: set[str], optional: set[str]) -> None:
    known = sorted(needed | optional)
    for key in entry.keys() - known:
        near = get_close_matches(key, known, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else f"Valid keys: {', '.join(known)}"
        raise UserError(f"{where}: unknown key {shown(key)}. {hint}")
    missing = sorted(needed - entry.keys())
    if missing:
        raise UserError(f"{where}: {' and '.join(missing)} missing")
