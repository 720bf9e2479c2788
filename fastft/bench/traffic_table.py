"""`fastft bench traffic RECIPE`: memory traffic of a training step by operation, as JSON and as a terminal table."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fastft.cost.traffic import OpTraffic, count_images, step_traffic
from fastft.model.phases import find_phases, with_phase
from fastft.recipe import Recipe

PATHS = {"autocast": "autocast, fp32 residual", "half": "half-precision copy"}
SMALLEST_ROW_GB = 0.05  # operations below it are one row of the table; the JSON has all


def measure_traffic(recipe: Recipe) -> dict[str, Any]:
    """GB and operations of a step of the last epoch outside matrix products and attention.

    Keys: recipe, images, autocast_gb, half_gb, autocast_calls, half_calls, and `ops`: a row per path, direction and
    operation.
    """
    recipe = with_phase(recipe, find_phases(recipe)[-1])
    traffic = {path: step_traffic(recipe, path) for path in PATHS}
    return {
        "recipe": recipe.name,
        "images": count_images(recipe),
        **{f"{path}_gb": sum(op.bytes for op in ops) / 1e9 for path, ops in traffic.items()},
        **{f"{path}_calls": sum(op.calls for op in ops) for path, ops in traffic.items()},
        "ops": [_row(path, op) for path, ops in traffic.items() for op in ops],
    }


def _row(path: str, op: OpTraffic) -> dict[str, Any]:
    return {"path": path, "direction": op.direction, "op": op.op, "calls": op.calls, "gb": op.bytes / 1e9}


def print_traffic(values: dict[str, Any], console: Console) -> None:
    console.print(
        f"{values['recipe']}: memory traffic of a step of {values['images']} images outside matrix products and "
        "attention, counted from shapes",
        highlight=False,
    )
    for path, title in PATHS.items():
        console.print(_table(values, path, title))


def _table(values: dict[str, Any], path: str, title: str) -> Table:
    table = Table(
        title=f"{title}: {values[f'{path}_gb']:.1f} GB, {values[f'{path}_calls']} operations",
        title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    table.add_column("operation")
    for key in ("direction", "calls", "GB"):
        table.add_column(key, justify="left" if key == "direction" else "right")
    rows = [row for row in values["ops"] if row["path"] == path]
    for row in rows:
        if row["gb"] >= SMALLEST_ROW_GB:
            table.add_row(row["op"], row["direction"], str(row["calls"]), f"{row['gb']:.2f}")
    rest = [row for row in rows if row["gb"] < SMALLEST_ROW_GB]
    calls, gb = sum(row["calls"] for row in rest), sum(row["gb"] for row in rest)
    table.add_row("others", "", str(calls), f"{gb:.2f}")
    return table
