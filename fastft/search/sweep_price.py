"""Predict the cost of sweeps before they run; every shared training counts once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from beton_tools.base.console import compact_table, print_table
from fastft.cost.price import LOADER_LIMITS, predict
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
    """Predicted hours of a row's training; `remark` says why a row needs none, `starved` lists GPUs that wait for the loader."""

    sweep: str
    row: str
    hours: Hours | None = None
    remark: str = ""
    starved: tuple[str, ...] = ()


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
    return {kind: p["hours"] for kind, p in predict(recipe).items() if p["hours"] is not None}


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
            predicted = predict(load_counted(sweep.reference(row), overrides))
            hours = {kind: p["hours"] for kind, p in predicted.items() if p["hours"] is not None}
            starved = tuple(kind for kind, p in predicted.items() if p["limited_by"] == "loader")
            prices.append(Price(sweep.name, row.title, hours, starved=starved))
    return prices


def total_hours(prices: Sequence[Price]) -> Hours:
    return {kind: sum(p.hours.get(kind, 0.0) for p in prices if p.hours) for kind in MAIN_GPUS}


def print_prices(prices: Sequence[Price], console: Console) -> None:
    title = f"GPU-hours, on 8 GPUs, modelled: {K:g} of the roofline's speed is expected"
    table = compact_table(title, ["table", "row", "", *MAIN_GPUS], left=3)
    name = None
    for price in prices:
        if name != price.sweep:
            table.add_section()
        shown, name = "" if name == price.sweep else price.sweep, price.sweep
        table.add_row(shown, price.row, price.remark, *(_hours(price, kind) for kind in MAIN_GPUS))
    total = (f"{hours:,.1f}" for hours in total_hours(prices).values())
    trainings = sum(price.hours is not None for price in prices)
    table.add_section()
    table.add_row("all", f"{trainings} of {len(prices)} rows", "", *total)
    print_table(table, console)
    if any(price.starved for price in prices):
        console.print(LOADER_LIMITS, highlight=False, soft_wrap=True)


def _hours(price: Price, kind: str) -> str:
    if price.hours is None or kind not in price.hours:
        return "-"
    return f"{price.hours[kind]:,.1f}{'*' if kind in price.starved else ''}"
