"""`fastft cost --frontier`: the combinations of a recipe's levers with cost and expected accuracy, the cheapest first."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from beton_tools.base.errors import UserError
from fastft.cost.levers import SET_BY_LEVERS, Combination, combinations
from fastft.cost.mfu import Mfu, known_mfus
from fastft.cost.model import MACHINE_GPUS, estimate
from fastft.cost.overheads import FASTFT, cores_per_gpu, with_cores
from fastft.cost.table import TABLE_WIDTH, known_gpu
from fastft.machine.gpus import GPUS, MAIN_GPUS
from fastft.recipe import Recipe

NOTE = "modelled on eight GPUs, not measured; losses of several ways to save are added up, which is assumed"


def price_combinations(
    recipe: Recipe, gpu: str | None = None, mfu: float | None = None, at_least: float | None = None
) -> dict[str, Any]:
    """Plain values for JSON: recipe, at_least, gpus (names), combinations (levers, options, gpu_hours, expected_top1, sources).

    gpu: one GPU instead of MAIN_GPUS. mfu: instead of the published one. Sorted by the hours of the first GPU.

    Raises:
        UserError: unknown GPU, or no combination is expected to reach `at_least`.
    """
    gpus = list(MAIN_GPUS) if gpu is None else [known_gpu(gpu).name]
    rows = [_priced(found, gpus, mfu) for found in combinations(recipe, at_least)]
    if not rows:
        known = [found.expected for found in combinations(recipe) if found.expected is not None]
        best = f" (the log's best is {max(known):.2f})" if known else ""
        raise UserError(
            f"nothing shows that {recipe.name} can reach {at_least:g} % top-1{best}; give a lower --at-least"
        )
    rows.sort(key=lambda row: row["gpu_hours"][gpus[0]])
    return {"recipe": recipe.name, "at_least": at_least, "gpus": gpus, "modelled": True, "combinations": rows}


def _priced(found: Combination, gpus: Sequence[str], mfu: float | None) -> dict[str, Any]:
    return {
        "levers": list(found.levers),
        "options": _changed(found.recipe),
        "gpu_hours": {gpu: _hours(found.recipe, gpu, mfu) for gpu in gpus},
        "expected_top1": found.expected,
        "sources": list(found.sources),
    }


def _changed(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in recipe.flat().items() if key in SET_BY_LEVERS}


def _hours(recipe: Recipe, name: str, given: float | None) -> float:
    """GPU-hours at the given MFU, the one published for a ViT, or the roofline's where there is none."""
    gpu, over = GPUS[name], with_cores(FASTFT, cores_per_gpu(name))
    mfu = next(known_mfus(recipe, gpu, MACHINE_GPUS)) if given is None else Mfu(given, "given", "--mfu")
    return estimate(recipe, gpu, MACHINE_GPUS, mfu, over).gpu_hours


def print_frontier(values: dict[str, Any], console: Console) -> None:
    console.width = max(console.width, TABLE_WIDTH)
    table = Table(
        title=f"{values['recipe']}: {NOTE}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for gpu in values["gpus"]:
        table.add_column(f"{gpu}-hours", justify="right", no_wrap=True)
    table.add_column("top-1", justify="right", no_wrap=True)
    table.add_column("ways to save")
    table.add_column("source of the expected top-1")
    for row in values["combinations"]:
        top1 = "not run" if row["expected_top1"] is None else f"{row['expected_top1']:.2f}"
        hours = [f"{row['gpu_hours'][gpu]:.1f}" for gpu in values["gpus"]]
        table.add_row(*hours, top1, ", ".join(row["levers"]) or "none", "; ".join(row["sources"]))
    console.print(table, highlight=False)
