"""Predict the cost of sweeps before they run; every shared training counts once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from beton_tools.base.console import compact_table, print_table
from fastft.cost.price import LOADER_LIMITS, format_hours, predict
from fastft.cost.roofline import K
from fastft.machine.gpus import MAIN_GPUS
from fastft.photos.counts import load_counted
from fastft.recipe import Recipe
from fastft.recipe.recipe_file import is_table, open_sweep
from fastft.recipe.tables import Sweep
from fastft.search.results import read_result
from fastft.search.runs import plan_runs, run_key

Hours = dict[str, float]  # by GPU kind, modelled; without kinds on which the step cannot be counted


@dataclass(frozen=True)
class Price:
    """The cost of a row's training as `predict` gives it; empty if the row needs none, and `remark` says why."""

    sweep: str
    row: str
    predicted: dict[str, dict[str, Any]] = field(default_factory=dict)
    remark: str = ""

    @property
    def hours(self) -> Hours:
        return _hours(self.predicted)


def read_trainings(references: Sequence[str], overrides: Sequence[str]) -> tuple[list[Recipe], int]:
    """(trainings that recipes and the rows of tables need, each once; number of recipes and rows).

    Raises:
        UserError: as `open_sweep` and `load_counted`.
    """
    rows = [row for reference in references for row in _rows(reference)]
    trainings: dict[str, Recipe] = {}
    for row in rows:
        recipe = load_counted(row, overrides)
        trainings.setdefault(run_key(recipe), recipe)
    return list(trainings.values()), len(rows)


def _rows(reference: str) -> list[str]:
    if not is_table(reference):
        return [reference]
    sweep = open_sweep(reference)
    return [sweep.reference(row) for row in sweep.rows]


def recipe_hours(recipe: Recipe) -> Hours:
    return _hours(predict(recipe))


def _hours(predicted: dict[str, dict[str, Any]]) -> Hours:
    return {kind: p["hours"] for kind, p in predicted.items() if p["hours"] is not None}


def price_sweeps(sweeps: Sequence[Sweep], overrides: Sequence[str], out: Path) -> list[Price]:
    """The rows that `run_sweeps` with the same arguments would train, with their cost.

    Raises:
        UserError: as `plan_runs` and `load_counted`.
    """
    prices: list[Price] = []
    first: dict[str, str] = {}
    for sweep in sweeps:
        for row, run in zip(sweep.rows, plan_runs(sweep, overrides, out / "runs"), strict=True):
            if row not in sweep.selected_rows:
                continue
            if run.key in first:
                prices.append(Price(sweep.name, row.title, remark=f"= {first[run.key]}"))
                continue
            first[run.key] = f"{sweep.name} {row.title}"
            if read_result(run) is not None:
                prices.append(Price(sweep.name, row.title, remark=f"trained: {run.key}"))
                continue
            prices.append(Price(sweep.name, row.title, predict(load_counted(sweep.reference(row), overrides))))
    return prices


def total_hours(prices: Sequence[Price]) -> Hours:
    return {kind: sum(p.hours.get(kind, 0.0) for p in prices) for kind in MAIN_GPUS}


def print_prices(prices: Sequence[Price], console: Console) -> None:
    title = f"GPU-hours, on 8 GPUs, modelled: {K:g} of the roofline's speed is expected"
    table = compact_table(title, ["table", "row", "", *MAIN_GPUS], left=3)
    name = None
    for price in prices:
        if name != price.sweep:
            table.add_section()
        shown, name = "" if name == price.sweep else price.sweep, price.sweep
        cells = [format_hours(price.predicted[kind]) if price.predicted else "-" for kind in MAIN_GPUS]
        table.add_row(shown, price.row, price.remark, *cells)
    total = (f"{hours:,.1f}" for hours in total_hours(prices).values())
    trainings = sum(bool(price.predicted) for price in prices)
    table.add_section()
    table.add_row("all", f"{trainings} of {len(prices)} rows", "", *total)
    print_table(table, console)
    if any(p["limited_by"] == "loader" for price in prices for p in price.predicted.values()):
        console.print(LOADER_LIMITS, highlight=False, soft_wrap=True)
