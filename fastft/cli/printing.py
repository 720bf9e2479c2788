"""Tables that the commands print: explanations, prices, recipes and checks."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastft.cost.price import LOADER_LIMITS, format_hours
from fastft.cost.roofline import K
from fastft.machine.doctor import FAIL, OK, WARN
from fastft.recipe import describe_choice
from fastft.recipe.check import show_value
from fastft.recipe.training_images import NO_EXPECTATION

LISTED_LRS = 100  # at most; --json has those of all epochs
TABLE_WIDTH = 100  # minimum; in a narrower terminal the lines wrap, and no figure is cut off
WITH_SOURCE = 120  # characters; below it the last column would be a word wide
NOTE = "modelled from FLOPs and memory traffic, not measured"
EXPECTED = f"{K:g} of the roofline's speed is expected"

# fastft explain ----------------------------------------------------------------------------------------------------------


def print_explanation(values: dict[str, Any], console: Console, gpus: int, verbose: bool) -> None:
    """Choices, cost, what is done; with `verbose` also every option, parameter group and learning rate.

    gpus: the number that `values["cost"]["assumptions"]` is about.
    """
    schedule = values["schedule"]
    console.rule(values["recipe"]["name"])
    _print_choices(values, console)
    console.print(_cost_table(values["cost"], gpus))
    _print_line("accuracy", values["expectation"], console)
    _print_line("augment", "; ".join(values["augment"]), console)
    steps = f"{schedule['total_steps']:,} steps, {schedule['steps_per_epoch']:,} per epoch"
    _print_line("schedule", f"{steps}{_listed_lrs(schedule) if verbose else ''}", console)
    if len(values["phases"]) > 1:
        _print_line("phases", "; ".join(map(_phase, values["phases"])), console)
    if verbose or "lr_at_step" in schedule:
        console.print(_groups_table(values))
    if verbose:
        _print_options(values["recipe"], console)
    else:
        console.print("--verbose adds every option, parameter group and learning rate")


def _listed_lrs(schedule: dict[str, Any]) -> str:
    lrs = [f"{lr:.3g}" for lr in schedule["lr_by_epoch"]]
    every = -(-len(lrs) // LISTED_LRS)
    of = "each epoch" if every == 1 else f"every {every} epochs"
    return f"; lr at the start of {of}: " + " ".join(lrs[::every])


def _print_options(recipe: dict[str, Any], console: Console) -> None:
    for section in (s for s in recipe if s not in ("name", "about")):
        shown = ", ".join(f"{k} {show_value(v)}" for k, v in recipe[section].items())
        _print_line(section, shown, console)


def _print_line(name: str, text: str, console: Console) -> None:
    console.print(Text.assemble((f"{name:<9}", "bold"), " ", text))


def _phase(phase: dict[str, Any]) -> str:
    last = phase["first_epoch"] + phase["epochs"] - 1
    dropped = f", {phase['patch_dropout']:.0%} of the patches dropped" if phase["patch_dropout"] else ""
    flops = f"{phase['train_flops_per_image'] / 1e9:.1f} GFLOP per image"
    return f"epochs {phase['first_epoch']}-{last} {phase['image_size']} px{dropped}, {flops}"


def _print_choices(values: dict[str, Any], console: Console) -> None:
    for choice in values["choices"]:
        console.print(describe_choice(**choice))
    for warning in values["warnings"]:
        console.print(f"warning: {warning}")


def _groups_table(values: dict[str, Any]) -> Table:
    at_step = values["schedule"].get("lr_at_step")
    table = Table(title=f"{values['trainable_parameters']:,} trainable parameters", title_justify="left")
    columns = ["layer", "lr scale", "weight decay", "parameters"] + (
        [f"lr at step {at_step['step']}"] if at_step else []
    )
    for column in columns:
        table.add_column(column, justify="right")
    for g in values["groups"]:
        row = [str(g["layer_id"]), f"{g['lr_scale']:.6g}", f"{g['weight_decay']:g}", f"{g['parameters']:,}"]
        table.add_row(*row, *([f"{g['lr']:.4g}"] if at_step else []))
    return table


def _cost_table(cost: dict[str, Any], gpus: int) -> Table:
    gflop, val = cost["train_flops_per_image"] / 1e9, cost["val_images"]
    table = Table(
        title=f"{gflop:.1f} GFLOP per training image; {'GPU-hours on 8 GPUs' if gpus > 1 else 'hours on one GPU'}, modelled",
        title_justify="left",
        caption=f"{val['what']}: {val['value']:,}; {EXPECTED}; - cannot be counted; * the loader is the bottleneck, with "
        "the cores of a usual cloud machine",
        caption_justify="left",
    )
    table.add_column("GPU")
    for title in ("MFU", "hours", "roofline MFU", "hours", "slowest published", "hours"):
        table.add_column(title, justify="right")
    for name, predicted in cost["assumptions"].items():
        rows = {row["basis"]: row for row in predicted["estimates"]}
        pairs = [_mfu_and_hours(rows.get(basis)) for basis in ("expected", "roofline", "published")]
        table.add_row(name, *(cell for pair in pairs for cell in pair))
    return table


def _mfu_and_hours(row: dict[str, Any] | None) -> tuple[str, str]:
    return ("-", "-") if row is None else (f"{row['mfu']:.1%}", format_hours(row))


def print_comparison(values: dict[str, Any], console: Console) -> None:
    table = Table("", *values["recipes"])
    for entry in values["options"]:
        table.add_row(entry["option"], *map(show_value, entry["values"]))
    if not values["options"]:
        table.add_row("no option differs", "", "")
    table.add_section()
    table.add_row("accuracy", *values["expectation"])
    for kind, hours in values["gpu_hours"].items():
        table.add_row(f"GPU-hours on {kind}, modelled", *("-" if h is None else f"{h:.1f}" for h in hours))
    console.print(table)


# fastft cost -------------------------------------------------------------------------------------------------------------


def print_prices(values: dict[str, Any], console: Console) -> None:
    console.width = max(console.width, TABLE_WIDTH)
    console.print(_table(values))
    console.print(
        f"steps: share of the wall time; the rest is evaluation and start. MFU is of "
        f"{values['peak_flops'] / 1e12:g} TFLOP/s:",
        highlight=False,
        soft_wrap=True,
    )
    for basis, source in _sources(values).items():
        console.print(f"  {basis:<24} {source}", soft_wrap=True)
    for row in values["assumptions"]:
        console.print(f"  {row['basis']:<24} {row['what']}: {row['value']:g}", soft_wrap=True)
    for remark in _missing_expectations(values["recipes"]) + values["remarks"]:
        console.print(remark, soft_wrap=True)
    if any(e["limited_by"] == "loader" for r in values["recipes"] for e in r["estimates"]):
        console.print(LOADER_LIMITS, soft_wrap=True)


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
    console.print(table)


# fastft recipes, doctor -----------------------------------------------------------------------------------------


def print_recipes(values: dict[str, Any], console: Console) -> None:
    """The tables as text; a narrow console gets no column of sources."""
    recipes = values["recipes"]
    kinds = list(recipes[0]["gpu_hours"])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    table.caption = (
        f"GPU-hours modelled on eight GPUs: {EXPECTED}; fastft cost NAME --gpu GPU gives\n"
        "details, fastft explain NAME the source of the expected top-1. photos is priced for ImageNet's images"
    )
    with_source = console.width >= WITH_SOURCE
    for column in ("recipe", "px", "epochs", "top-1", *kinds):
        table.add_column(column, justify="left" if column == "recipe" else "right", no_wrap=True)
    if with_source:
        table.add_column("source of the expected top-1")
    for r in recipes:
        top1 = "-" if r["expected_top1"] is None else f"{r['expected_top1']:g}"
        hours = ["-" if h is None else f"{h:.1f}" for h in r["gpu_hours"].values()]
        table.add_row(
            r["name"], str(r["image_size"]), str(r["epochs"]), top1, *hours, *[_source(r)] * with_source
        )
    console.print(table)
    console.print(
        "Tables, with their number of rows (fastft sweep NAME, or one row: fastft train 'NAME[ROW]'):",
        highlight=False,
    )
    for t in values["tables"]:
        console.print(f"  {t['name']:<18} {t['source']}: {t['title']} ({t['rows']})")


def _source(recipe: dict[str, Any]) -> str:
    """The source in the brackets of 'expected 85.7 % top-1 (SOURCE)'."""
    return str(recipe["expectation"]).partition("(")[2].removesuffix(")")


def print_checks(values: dict[str, Any], console: Console) -> None:
    colours = {OK: "green", WARN: "yellow", FAIL: "bold red"}
    for c in values["checks"]:
        line = Text.assemble((f"{c['status']:<5}", colours[c["status"]]), f" {c['name']:<12} {c['found']}")
        console.print(line, soft_wrap=True)
        if c["fix"]:
            console.print(f"{'':<18} fix: {c['fix']}", soft_wrap=True)
