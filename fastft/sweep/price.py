"""What sweeps cost before they run: GPU-hours by kind, every shared training counted once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fastft.config import Recipe
from fastft.report.cost import PUBLISHED_MFU, predict
from fastft.report.hardware import GPUS
from fastft.sweep.definition import Sweep
from fastft.sweep.plan import plan_runs
from fastft.sweep.results import read_result

Hours = dict[str, float]  # by GPU kind, modelled at the best MFU published for it


@dataclass(frozen=True)
class Price:
    """A row's share: the hours of its training, or why it needs none."""

    sweep: str
    row: str
    hours: Hours | None
    remark: str = ""


def recipe_hours(recipe: Recipe) -> Hours:
    return {kind: values["hours"] for kind, values in predict(recipe).items()}


def price_sweeps(sweeps: Sequence[Sweep], overrides: Sequence[str], out: Path) -> list[Price]:
    """What `run_sweeps` with the same arguments would train. Raises UserError as `plan_runs`."""
    prices = []
    first: dict[str, str] = {}
    for sweep in sweeps:
        for row, run in zip(sweep.rows, plan_runs(sweep, overrides, out / "runs"), strict=True):
            hours, remark = None, ""
            if run.key in first:
                remark = f"= {first[run.key]}"
            elif read_result(run) is not None:
                remark = f"trained: {run.key}"
            else:
                hours = recipe_hours(run.recipe)
            first.setdefault(run.key, f"{sweep.name} {row.name}")
            prices.append(Price(sweep.name, row.name, hours, remark))
    return prices


def total_hours(prices: Sequence[Price]) -> Hours:
    return {kind: sum(p.hours[kind] for p in prices if p.hours) for kind in GPUS}


def print_prices(prices: Sequence[Price], console: Console) -> None:
    shares = ", ".join(f"{kind} {mfu.value:.1%}" for kind, mfu in PUBLISHED_MFU.items())
    table = Table(
        title=f"GPU-hours, on 8 GPUs, modelled at the best published MFU: {shares}", title_justify="left"
    )
    table.add_column("table")
    table.add_column("row")
    for kind in GPUS:
        table.add_column(kind, justify="right")
    table.add_column("")
    for previous, price in zip([None, *prices], prices, strict=False):
        if previous and previous.sweep != price.sweep:
            table.add_section()
        name = "" if previous and previous.sweep == price.sweep else price.sweep
        hours = ("-" if price.hours is None else f"{price.hours[kind]:,.1f}" for kind in GPUS)
        table.add_row(name, price.row, *hours, price.remark)
    total = (f"{hours:,.1f}" for hours in total_hours(prices).values())
    trainings = sum(price.hours is not None for price in prices)
    table.add_section()
    table.add_row("all", f"{trainings} of {len(prices)} rows", *total, style="bold")
    console.print(table)
