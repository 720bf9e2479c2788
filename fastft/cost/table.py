"""`fastft cost`: recipes priced side by side, as JSON and as a terminal table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from beton_tools.base.errors import UserError
from fastft.cost.mfu import Mfu, known_mfus
from fastft.cost.model import Estimate, estimate
from fastft.cost.overheads import (
    FASTFT,
    Measured,
    Overheads,
    cores_per_gpu,
    read_measured,
    with_cores,
    with_measured,
)
from fastft.cost.work import recipe_flops
from fastft.machine.gpus import GPUS, Gpu, find_gpu
from fastft.model import load_arch
from fastft.recipe import Recipe
from fastft.recipe.imagenet import NO_EXPECTATION, describe_expectation, expected_top1, val_images_row

TABLE_WIDTH = 100  # minimum; in a narrower terminal the lines wrap, and no figure is cut off
NOTE = "modelled from FLOPs, not measured"
LOADER_LIMITS = "* GPUs wait for the loader: give it more cores, or convert to a smaller max resolution"


@dataclass(frozen=True)
class CostQuery:
    """Options of `price_recipes`: `price` is money per GPU-hour, `measured` a file of `fastft bench`."""

    gpu: str
    gpus: int = 8
    price: float | None = None
    measured: Path | None = None
    cores_per_gpu: float | None = None  # default: as `cores_per_gpu`
    mfu: float | None = None
    val_images: int | None = None  # default: `assumed_val_images`


def price_recipes(recipes: Sequence[Recipe], query: CostQuery, rows: int | None = None) -> dict[str, Any]:
    """Hours and money of every recipe at each known MFU; keys as in docs/bench-schema.md.

    rows: number of sweep rows that the recipes train; if given, the result has a total.

    Raises:
        UserError: unknown GPU, a benchmark file without figures for it, or a recipe that cannot be built.
    """
    gpu = known_gpu(query.gpu)
    measured = None if query.measured is None else read_measured(query.measured)
    over = _overheads(query, measured)
    own, remarks = _own_mfus(query, measured, gpu)
    priced = []
    for recipe in recipes:
        arch = load_arch(recipe.model.arch).at(recipe.model.image_size)
        mfus = [*own, *known_mfus(recipe, gpu, query.gpus)]
        estimates = [estimate(recipe, gpu, query.gpus, mfu, over, query.val_images) for mfu in mfus]
        priced.append(_priced(recipe, recipe_flops(recipe, arch).train, estimates, query.price))
    return {
        "modelled": True,
        "gpu": gpu.name,
        "peak_flops": gpu.peak_flops,
        "gpus": query.gpus,
        "price": query.price,
        "recipes": priced,
        "total": None if rows is None else _total(priced, rows),
        "assumptions": over.describe() + _val_images(recipes, query.val_images),
        "remarks": remarks,
    }


def known_gpu(name: str) -> Gpu:
    """The GPU with this name in any case; spaces and hyphens do not matter."""
    wanted = _plain(name)
    found = next((gpu for gpu in GPUS.values() if _plain(gpu.name) == wanted), None)
    if found is None:
        raise UserError(f"no data are known for GPU '{name}'; choose one of {', '.join(GPUS)}")
    return found


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace(" ", "")


def _overheads(query: CostQuery, measured: Measured | None) -> Overheads:
    cores = query.cores_per_gpu or cores_per_gpu(known_gpu(query.gpu).name)
    over = with_cores(FASTFT, cores)
    return over if measured is None else with_measured(over, measured, cores)


def _val_images(recipes: Sequence[Recipe], given: int | None) -> list[dict[str, Any]]:
    rows = [val_images_row(recipe, given) for recipe in recipes]
    return list({row["what"]: row for row in rows}.values())


def _own_mfus(query: CostQuery, measured: Measured | None, gpu: Gpu) -> tuple[list[Mfu], list[str]]:
    """MFUs given by --mfu or measured on this GPU; and remarks on figures that are not used."""
    own = [] if query.mfu is None else [Mfu(query.mfu, "given", "--mfu")]
    if measured is None or measured.mfu is None:
        return own, []
    if find_gpu(measured.gpu) == gpu:
        return [*own, Mfu(measured.mfu, "measured", str(measured.path))], []
    elsewhere = f"{measured.path} was measured on {measured.gpu}, not on {gpu.name} of {gpu.peak_flops / 1e12:g} TFLOP/s"
    if measured.loader_per_core is None:
        raise UserError(f"{elsewhere}; measure there, or leave it out")
    return own, [f"{elsewhere}: its MFU is not used"]


def _priced(
    recipe: Recipe, train_flops: float, estimates: list[Estimate], price: float | None
) -> dict[str, Any]:
    top1 = expected_top1(recipe)
    return {
        "recipe": recipe.name,
        "epochs": recipe.epochs,
        "image_size": recipe.model.image_size,
        "train_flops_per_image": train_flops,
        "expected_top1": top1,
        "expected_source": None if top1 is None else recipe.about.source,
        "expectation": describe_expectation(recipe),
        "estimates": [e.as_dict(price) for e in estimates],
    }


def _total(priced: Sequence[dict[str, Any]], rows: int) -> dict[str, Any]:
    """Sums over all recipes, per kind of MFU."""
    estimates = []
    for column in zip(*(recipe["estimates"] for recipe in priced), strict=True):
        money = None if column[0]["money"] is None else sum(e["money"] for e in column)
        hours = {key: sum(e[key] for e in column) for key in ("wall_hours", "gpu_hours")}
        estimates.append({"basis": column[0]["basis"], **hours, "money": money})
    return {"rows": rows, "trainings": len(priced), "estimates": estimates}


def print_prices(values: dict[str, Any], console: Console) -> None:
    console.width = max(console.width, TABLE_WIDTH)
    console.print(_table(values))
    console.print(
        f"steps: share of the wall time; the rest is evaluation, checkpoints, start. MFU is of "
        f"{values['peak_flops'] / 1e12:g} TFLOP/s:",
        highlight=False,
        soft_wrap=True,
    )
    for basis, source in _sources(values).items():
        console.print(f"  {basis:<24} {source}", highlight=False, soft_wrap=True)
    for row in values["assumptions"]:
        console.print(
            f"  {row['basis']:<24} {row['what']}: {row['value']:g}", highlight=False, soft_wrap=True
        )
    for remark in _missing_expectations(values["recipes"]) + values["remarks"]:
        console.print(remark, highlight=False, markup=False, soft_wrap=True)
    if any(e["limited_by"] == "loader" for r in values["recipes"] for e in r["estimates"]):
        console.print(LOADER_LIMITS, highlight=False, soft_wrap=True)


def _table(values: dict[str, Any]) -> Table:
    title, total = f"{values['gpus']} x {values['gpu']}: {NOTE}", values["total"]
    if total:
        title += f"; {total['rows']} rows, {total['trainings']} trainings"
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("recipe", no_wrap=True)
    table.add_column("top-1", justify="right", no_wrap=True)
    table.add_column("MFU", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    columns = ["wall h", "GPU-h", "steps"]
    for column in columns + (["money"] if values["price"] is not None else []):
        table.add_column(column, justify="right", no_wrap=True)
    for recipe in values["recipes"]:
        for k, e in enumerate(recipe["estimates"]):
            first = [recipe["recipe"], _top1(recipe)] if k == 0 else ["", ""]
            table.add_row(*first, *_cells(e), end_section=k == len(recipe["estimates"]) - 1)
    for k, e in enumerate(total["estimates"] if total else ()):
        table.add_row("" if k else "total", "", "", e["basis"], *_hours(e), "", *_money(e), style="bold")
    return table


def _top1(recipe: dict[str, Any]) -> str:
    return "-" if recipe["expected_top1"] is None else f"{recipe['expected_top1']:g}"


def _missing_expectations(recipes: Sequence[dict[str, Any]]) -> list[str]:
    """Why recipes have no expected accuracy, each reason once."""
    names: dict[str, list[str]] = {}
    for recipe in recipes:
        if recipe["expected_top1"] is None and recipe["expectation"] != NO_EXPECTATION:
            names.setdefault(recipe["expectation"], []).append(recipe["recipe"])
    return [f"{', '.join(of)}: {reason}" for reason, of in names.items()]


def _cells(e: dict[str, Any]) -> list[str]:
    steps = (e["seconds"]["train"] + e["seconds"]["stall"]) / sum(e["seconds"].values())
    star = "*" if e["limited_by"] == "loader" else ""
    wall, gpu = _hours(e)
    return [f"{e['value']:.1%}", e["basis"], wall, f"{gpu}{star}", f"{steps:.0%}", *_money(e)]


def _hours(e: dict[str, Any]) -> tuple[str, str]:
    hours, minutes = divmod(round(60 * e["wall_hours"]), 60)
    return f"{hours}:{minutes:02}", f"{e['gpu_hours']:.1f}"


def _money(e: dict[str, Any]) -> list[str]:
    return [] if e["money"] is None else [f"{e['money']:,.2f}"]


def _at(e: dict[str, Any]) -> str:
    return f"{e['value']:.1%} {e['basis']}"


def _sources(values: dict[str, Any]) -> dict[str, str]:
    """Sources of the MFUs, without repetition."""
    return {_at(e): e["source"] for r in values["recipes"] for e in r["estimates"]}
