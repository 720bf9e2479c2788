"""What sweeps cost before they run, every shared training counted once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fastft.config import Recipe
from fastft.cost.model import PUBLISHED_MFU, predict
from fastft.cost.recipes import is_sweep, load_priceable
from fastft.cost.table import LOADER_LIMITS
from fastft.machine.gpus import MAIN_GPUS
from fastft.sweep.definition import Sweep, load_sweep
from fastft.sweep.planned_runs import plan_runs, run_key
from fastft.sweep.results import read_result

Hours = dict[str, float]  # by GPU kind, modelled at the best MFU published for it


@dataclass(frozen=True)
class Price:
    """A row's share: the hours of its training, and the GPU kinds that wait for the loader; or why it needs none."""

    sweep: str
    row: str
    hours: Hours | None = None
    remark: str = ""
    starved: tuple[str, ...] = ()


def read_trainings(paths: Sequence[Path], overrides: Sequence[str]) -> tuple[list[Recipe], int]:
    """(trainings that the rows of sweep files need, each once; number of rows). A recipe file is a row of its own.

    Raises:
        UserError: as `load_sweep` and `load_priceable`.
    """
    files = [
        file
        for path in paths
        for file in ([r.recipe for r in load_sweep(path).rows] if is_sweep(path) else [path])
    ]
    trainings: dict[str, Recipe] = {}
    for file in files:
        recipe = load_priceable(file, overrides)
        trainings.setdefault(run_key(recipe), recipe)
    return list(trainings.values()), len(files)


def recipe_hours(recipe: Recipe) -> Hours:
    return {kind: values["hours"] for kind, values in predict(recipe).items()}


def price_sweeps(sweeps: Sequence[Sweep], overrides: Sequence[str], out: Path) -> list[Price]:
    """What `run_sweeps` with the same arguments would train. Raises UserError as `plan_runs`."""
    prices = []
    first: dict[str, str] = {}
    for sweep in sweeps:
        for row, run in zip(sweep.rows, plan_runs(sweep, overrides, out / "runs"), strict=True):
            price = Price(sweep.name, row.name)
            if run.key in first:
                price = replace(price, remark=f"= {first[run.key]}")
            elif read_result(run) is not None:
                price = replace(price, remark=f"trained: {run.key}")
            else:
                price = _predicted(price, load_priceable(row.recipe, overrides))
            first.setdefault(run.key, f"{sweep.name} {row.name}")
            prices.append(price)
    return prices


def _predicted(price: Price, recipe: Recipe) -> Price:
    predicted = predict(recipe)
    hours = {kind: p["hours"] for kind, p in predicted.items()}
    starved = tuple(kind for kind, p in predicted.items() if p["limited_by"] == "loader")
    return replace(price, hours=hours, starved=starved)


def total_hours(prices: Sequence[Price]) -> Hours:
    return {kind: sum(p.hours[kind] for p in prices if p.hours) for kind in MAIN_GPUS}


def print_prices(prices: Sequence[Price], console: Console) -> None:
    shares = ", ".join(f"{kind} {mfu.value:.1%}" for kind, mfu in PUBLISHED_MFU.items())
    table = Table(
        title=f"GPU-hours, on 8 GPUs, modelled at the best published MFU: {shares}", title_justify="left"
    )
    table.add_column("table")
    table.add_column("row")
    for kind in MAIN_GPUS:
        table.add_column(kind, justify="right")
    table.add_column("")
    for previous, price in zip([None, *prices], prices, strict=False):
        if previous and previous.sweep != price.sweep:
            table.add_section()
        name = "" if previous and previous.sweep == price.sweep else price.sweep
        table.add_row(name, price.row, *(_hours(price, kind) for kind in MAIN_GPUS), price.remark)
    total = (f"{hours:,.1f}" for hours in total_hours(prices).values())
    trainings = sum(price.hours is not None for price in prices)
    table.add_section()
    table.add_row("all", f"{trainings} of {len(prices)} rows", *total, style="bold")
    console.print(table)
    if any(price.starved for price in prices):
        console.print(LOADER_LIMITS, highlight=False, soft_wrap=True)


def _hours(price: Price, kind: str) -> str:
    if price.hours is None:
        return "-"
    return f"{price.hours[kind]:,.1f}{'*' if kind in price.starved else ''}"
