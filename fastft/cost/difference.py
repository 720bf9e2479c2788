"""`fastft explain --diff A B`: how two recipes differ, and what that means for accuracy and cost."""

from typing import Any

from rich.console import Console
from rich.table import Table

from fastft.cost.model import predict_published
from fastft.recipe import Recipe, differences
from fastft.recipe.check import show_value
from fastft.recipe.imagenet import describe_expectation


def compare(first: Recipe, second: Recipe) -> dict[str, Any]:
    """Plain values for JSON: recipes (names), options (option, values), expectation, gpu_hours by GPU kind; each pair in order.

    Raises:
        UserError: an architecture or batch that does not fit.
    """
    pair = (first, second)
    options = [
        {"option": key, "values": list(values)}
        for key, values in differences(*pair).items()
        if not key.startswith("about.")
    ]
    costs = [predict_published(recipe) for recipe in pair]
    return {
        "recipes": [recipe.name for recipe in pair],
        "options": options,
        "expectation": [describe_expectation(recipe) for recipe in pair],
        "gpu_hours": {kind: [cost[kind]["hours"] for cost in costs] for kind in costs[0]},
    }


def print_comparison(values: dict[str, Any], console: Console) -> None:
    table = Table("", *values["recipes"])
    for entry in values["options"]:
        table.add_row(entry["option"], *map(show_value, entry["values"]))
    if not values["options"]:
        table.add_row("no option differs", "", "")
    table.add_section()
    table.add_row("accuracy", *values["expectation"])
    for kind, hours in values["gpu_hours"].items():
        table.add_row(f"GPU-hours on {kind}, modelled", *(f"{h:.1f}" for h in hours))
    console.print(table, highlight=False)
