"""`fastft recipes`: the recipes and tables that come with fastft, with expected accuracy and predicted cost."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fastft.cost.model import predict_published
from fastft.recipe import load_recipe
from fastft.recipe.imagenet import describe_expectation, expected_top1
from fastft.recipe.recipe_file import TABLES, recipe_names
from fastft.recipe.tables import load_sweep

WITH_SOURCE = 120  # characters; below it the last column would be a word wide


def list_recipes() -> dict[str, Any]:
    """Plain values for JSON.

    Keys: recipes (name, arch, image_size, epochs, expected_top1, expectation, gpu_hours by GPU kind), cheapest last in each
    family of names; tables (name, title, source, rows).
    """
    tables = [load_sweep(path) for path in sorted(TABLES.glob("*.yaml"))]
    return {
        "recipes": [_recipe(name) for name in recipe_names()],
        "tables": [
            {"name": t.name, "title": t.title, "source": t.source, "rows": len(t.rows)} for t in tables
        ],
    }


def _recipe(name: str) -> dict[str, Any]:
    recipe = load_recipe(name)
    return {
        "name": name,
        "arch": recipe.model.arch,
        "image_size": recipe.model.image_size,
        "epochs": recipe.epochs,
        "expected_top1": expected_top1(recipe),
        "expectation": describe_expectation(recipe),
        "gpu_hours": {kind: cost["hours"] for kind, cost in predict_published(recipe).items()},
    }


def print_recipes(values: dict[str, Any], console: Console) -> None:
    """The tables as text; a narrow console gets no column of sources."""
    recipes = values["recipes"]
    kinds = list(recipes[0]["gpu_hours"])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    table.caption = (
        "GPU-hours modelled on eight GPUs at the MFU published for a ViT; fastft cost NAME --gpu GPU gives\n"
        "details, fastft explain NAME the source of the expected top-1. photos is priced for ImageNet's images"
    )
    with_source = console.width >= WITH_SOURCE
    for column in ("recipe", "px", "epochs", "top-1", *kinds):
        table.add_column(column, justify="left" if column == "recipe" else "right", no_wrap=True)
    if with_source:
        table.add_column("source of the expected top-1")
    for r in recipes:
        top1 = "-" if r["expected_top1"] is None else f"{r['expected_top1']:g}"
        hours = [f"{r['gpu_hours'][kind]:.1f}" for kind in kinds]
        table.add_row(
            r["name"], str(r["image_size"]), str(r["epochs"]), top1, *hours, *[_source(r)] * with_source
        )
    console.print(table, highlight=False)
    console.print(
        "Tables, with their number of rows (fastft sweep NAME, or one row: fastft train 'NAME[ROW]'):",
        highlight=False,
    )
    for t in values["tables"]:
        console.print(f"  {t['name']:<18} {t['source']}: {t['title']} ({t['rows']})", highlight=False)


def _source(recipe: dict[str, Any]) -> str:
    """The source in the brackets of 'expected 85.7 % top-1 (SOURCE)'."""
    return str(recipe["expectation"]).partition("(")[2].removesuffix(")")
