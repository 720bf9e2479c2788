"""`fastft bench traffic RECIPE`: memory traffic of a training step by operation, as JSON and as a terminal table."""

from typing import Any

from rich.console import Console

from beton_tools.base.console import compact_table, print_table
from fastft.cost.traffic import count_images, step_traffic
from fastft.model.recipe_model import find_phases, with_phase
from fastft.recipe import Recipe

PATHS = {"autocast": "autocast, fp32 residual", "half": "half-precision copy"}
SMALLEST_ROW_GB = 0.05  # operations below it are one row of the table; the JSON has all


def measure_traffic(recipe: Recipe) -> dict[str, Any]:
    """GB and operations of a step of the last epoch outside matrix products and attention.

    Keys: recipe, images, autocast_gb, half_gb, autocast_calls, half_calls, and `ops`: a row per path, direction and
    operation.
    """
    recipe = with_phase(recipe, find_phases(recipe)[-1])
    values: dict[str, Any] = {"recipe": recipe.name, "images": count_images(recipe), "ops": []}
    for path in PATHS:
        ops = step_traffic(recipe, path)
        values[f"{path}_gb"] = sum(op.bytes for op in ops) / 1e9
        values[f"{path}_calls"] = sum(op.calls for op in ops)
        values["ops"] += [
            {"path": path, "direction": op.direction, "op": op.op, "calls": op.calls, "gb": op.bytes / 1e9}
            for op in ops
        ]
    return values


def print_traffic(values: dict[str, Any], console: Console) -> None:
    head = f"{values['recipe']}: memory traffic of a step of {values['images']} images outside matrix products and attention"
    console.print(f"{head}, counted from shapes", highlight=False)
    for path, title in PATHS.items():
        rows = [row for row in values["ops"] if row["path"] == path]
        large, small = ([r for r in rows if (r["gb"] >= SMALLEST_ROW_GB) is keep] for keep in (True, False))
        rest = {key: sum(r[key] for r in small) for key in ("calls", "gb")}
        cells = [[r["op"], r["direction"], str(r["calls"]), f"{r['gb']:.2f}"] for r in large]
        cells.append(["others", "", str(rest["calls"]), f"{rest['gb']:.2f}"])
        head = f"{title}: {values[f'{path}_gb']:.1f} GB, {values[f'{path}_calls']} operations"
        print_table(compact_table(head, ["operation", "direction", "calls", "GB"], cells, left=2), console)
