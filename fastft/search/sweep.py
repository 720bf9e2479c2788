"""Train the rows of sweeps, and report them in the paper's layout: terminal, Markdown, JSON, charts; predict their cost.

A training that fails is reported and the others are continued.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from beton_tools.base.console import compact_table, markdown_table, print_table
from beton_tools.base.errors import UserError
from fastft.cost.price import LOADER_LIMITS, format_hours, predict
from fastft.cost.roofline import K
from fastft.machine.gpus import MAIN_GPUS
from fastft.photos.counts import load_counted
from fastft.photos.prepare import line_printer, prepare_overrides
from fastft.recipe import Recipe, load_recipe
from fastft.recipe.recipe_file import is_table, open_sweep
from fastft.recipe.tables import Sweep
from fastft.report.charts import Chart, Series
from fastft.search.runs import (
    WRITTEN,
    Outcome,
    PlannedRun,
    Score,
    plan_runs,
    read_result,
    run_key,
    train_run,
    write_results,
)
from fastft.train.distributed import World, find_world

COLUMNS = ("paper", "ours", "diff", "best EMA", "last EMA", "best raw", "last raw")
NOTE = (
    "Top-1 in percent. 'Ours' is the best epoch of the EMA (of the raw model where the paper has no EMA), "
    "chosen on the validation images as in the paper. ± is the binomial standard error, @ the epoch from 0."
)
SHIFT = 0.06  # horizontal offset between series of a table, so that error bars do not overlap
STYLES = ("accent", "ema", "peer-2", "peer-3", "peer-4")  # of series, in rotation; the paper's points are rings
CURVES = {"ema": "w EMA", "raw": "w/o EMA"}  # as the paper's Figure 2 names them
TOP1 = "top-1 (%)"

Hours = dict[str, float]  # by GPU kind, modelled; without kinds on which the step cannot be counted


def run_sweeps(sweeps: Sequence[Sweep], overrides: Sequence[str], out: Path, console: Console) -> list[Outcome]:
    """Train or resume every selected row; `out/<sweep>/` gets table.md, results.json and plot.svg after every training.

    Run directories are `out/runs/<key>`. Under torchrun every process calls this; the main process writes the reports.
    Photographs are converted once for all rows into `out/data`.

    Raises:
        UserError: a sweep, recipe or override is wrong, or there is no validation data.
        Preempted: stopped by a signal; the same call continues.
    """
    recipe = load_recipe(sweeps[0].reference(sweeps[0].rows[0]), overrides)
    options, outcomes = recipe.train, []
    # one process group for all trainings
    with find_world(options.device, options.timeout_minutes, "train.device") as world:
        overrides = prepare_overrides(recipe, overrides, out, line_printer(console), world)
        planned = [plan_runs(sweep, overrides, out / "runs") for sweep in sweeps]
        runs = [run for several in planned for run in several]
        if any(run.recipe.data.val is None for run in runs):
            raise UserError("a sweep compares accuracies and needs validation data; set --data.val=FILE.beton")
        console = console if world.is_main else Console(quiet=True)
        # decided before anything is trained, so that all processes decide from the same files
        failures: dict[str, str | None] = {run.key: None for run in runs if read_result(run) is None}
        waiting = set(failures)
        for sweep, own in zip(sweeps, planned, strict=True):
            for number, (row, run) in enumerate(zip(sweep.rows, own, strict=True), 1):
                if run.key in waiting and row in sweep.selected_rows:
                    waiting.remove(run.key)
                    console.rule(f"{sweep.name}, row {number} of {len(own)}: {row.title}")
                    failures[run.key] = train_run(run, world, console)
                    _report(sweep, own, failures, out, world)
            found = _report(sweep, own, failures, out, world)
            print_report(sweep, found, out / sweep.name, console)
            outcomes += found
    return outcomes


def _report(
    sweep: Sweep, runs: Sequence[PlannedRun], failures: Mapping[str, str | None], out: Path, world: World
) -> list[Outcome]:
    outcomes = [
        Outcome(row, run, read_result(run) or (), failures.get(run.key))
        for row, run in zip(sweep.rows, runs, strict=True)
    ]
    if world.is_main:
        write_report(sweep, outcomes, out / sweep.name)
    return outcomes


def write_report(sweep: Sweep, outcomes: Sequence[Outcome], folder: Path) -> None:
    """Write table.md (the paper's table with ours below, then all figures of every row), results.json and plot.svg."""
    title = f"{sweep.title} ({sweep.source})"
    details = [[o.row.title, *_cells(o), f"`{o.run.folder.name}`"] for o in outcomes]
    parts = [_grid(sweep, outcomes), NOTE, markdown_table(["row", *COLUMNS, "run"], details)]
    failed = [f"- {o.row.title}: {o.error}" for o in outcomes if o.error]
    if failed:
        parts.append("Failed:\n\n" + "\n".join(failed))
    document = {
        "name": sweep.name, "title": sweep.title, "source": sweep.source,
        "rows": [_json_row(sweep, o) for o in outcomes],
    }  # fmt: skip
    charts = [_epochs(o) for o in outcomes] if sweep.plot == "epochs" else [_labels(sweep, outcomes, title)]
    write_results(folder, title, parts, document, charts)


def print_report(sweep: Sweep, outcomes: Sequence[Outcome], folder: Path, console: Console) -> None:
    rows = ([outcome.row.title, *_cells(outcome)] for outcome in outcomes)
    print_table(compact_table(f"{sweep.title} ({sweep.source})", ["row", *COLUMNS], rows), console)
    for outcome in outcomes:
        if outcome.error:
            console.print(f"{outcome.row.title}: {outcome.error}", style="red", highlight=False, markup=False)
    console.print(f"written: {folder}/{', '.join(WRITTEN)}", highlight=False)


def _grid(sweep: Sweep, outcomes: Sequence[Outcome]) -> str:
    cells = {(o.row.series, o.row.label): o for o in outcomes}
    lines = []
    for series in sweep.series:
        row = [cells.get((series, label)) for label in sweep.labels]
        paper = ("" if o is None else as_published(o.row.paper) for o in row)
        lines.append([f"{series} paper".strip(), *paper])
        lines.append([f"{series} ours".strip(), *("" if o is None else _score(o.ours) for o in row)])
    return markdown_table(["", *sweep.labels], lines)


def _cells(outcome: Outcome) -> list[str]:
    difference = "-" if outcome.difference is None else f"{outcome.difference:+.2f}"
    cells = [as_published(outcome.row.paper), "failed" if outcome.error else _score(outcome.ours), difference]
    for weights in ("ema", "raw"):
        best, last = outcome.best(weights), outcome.last(weights)
        cells.append("-" if best is None else f"{best.top1:.2f} @{best.epoch}")
        cells.append("-" if last is None else f"{last.top1:.2f}")
    return cells


def as_published(top1: float | None) -> str:
    """A figure with one decimal, or two if the paper gives two; "-" if it gives none."""
    if top1 is None:
        return "-"
    return f"{top1:.1f}" if round(top1, 1) == top1 else f"{top1:.2f}"


def _score(score: Score | None) -> str:
    return "-" if score is None else f"{score.top1:.2f}±{score.standard_error:.2f}"


def _json_row(sweep: Sweep, outcome: Outcome) -> dict[str, Any]:
    row = outcome.row
    scores = {"ours": outcome.ours}
    for weights in ("ema", "raw"):
        scores |= {f"best_{weights}": outcome.best(weights), f"last_{weights}": outcome.last(weights)}
    return {
        "label": row.label, "series": row.series, "recipe": sweep.reference(row), "run": str(outcome.run.folder),
        "number": row.number, "paper": row.paper, "difference": outcome.difference, "error": outcome.error,
        **{name: score and vars(score) for name, score in scores.items()},
    }  # fmt: skip


def _labels(sweep: Sweep, outcomes: Sequence[Outcome], title: str) -> Chart:
    """The paper's and our figure of every label; rows without a result have the paper's point only."""
    line = "" if sweep.plot == "lines" else " points"
    lines = []
    for k, series in enumerate(sweep.series):
        style, shift = STYLES[k % len(STYLES)], SHIFT * (k - (len(sweep.series) - 1) / 2)
        cells = [(sweep.labels.index(o.row.label) + shift, o) for o in outcomes if o.row.series == series]
        paper = [(x, o.row.paper) for x, o in cells if o.row.paper is not None]
        ours = [(x, o.ours) for x, o in cells if o.ours]
        low, high = ([s.top1 + sign * s.standard_error for _, s in ours] for sign in (-1, 1))
        lines += [
            Series(f"{series} paper".strip(), f"{style} hollow{line}", [x for x, _ in paper], [y for _, y in paper]),
            Series(f"{series} ours".strip(), style + line, [x for x, _ in ours], [s.top1 for _, s in ours], low, high),
        ]
    return Chart(title, "", TOP1, lines, x_names=sweep.labels)


def _epochs(outcome: Outcome) -> Chart:
    lines = []
    for weights, name in CURVES.items():
        curve = outcome.curve(weights)
        lines.append(Series(f"{name}, ours", weights, [s.epoch for s in curve], [s.top1 for s in curve]))
    paper, last = outcome.row.paper, outcome.run.recipe.epochs - 1
    if paper is not None:
        lines.append(Series(f"best, paper {paper:g}", "own reference", [0, last], [paper, paper]))
    return Chart(outcome.row.title, "epoch", TOP1, lines, "top")


# cost; every shared training counts once ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Price:
    """The cost of a row's training as `predict` gives it; empty if the row needs none, and `remark` says why."""

    sweep: str
    row: str
    predicted: dict[str, dict[str, Any]] = field(default_factory=dict)
    remark: str = ""

    @property
    def hours(self) -> Hours:
        return _hours(self.predicted)


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
    return _hours(predict(recipe))


def _hours(predicted: dict[str, dict[str, Any]]) -> Hours:
    return {kind: p["hours"] for kind, p in predicted.items() if p["hours"] is not None}


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
            prices.append(Price(sweep.name, row.title, predict(load_counted(sweep.reference(row), overrides))))
    return prices


def total_hours(prices: Sequence[Price]) -> Hours:
    return {kind: sum(p.hours.get(kind, 0.0) for p in prices) for kind in MAIN_GPUS}


def print_prices(prices: Sequence[Price], console: Console) -> None:
    title = f"GPU-hours, on 8 GPUs, modelled: {K:g} of the roofline's speed is expected"
    table = compact_table(title, ["table", "row", "", *MAIN_GPUS], left=3)
    name = None
    for price in prices:
        if name != price.sweep:
            table.add_section()
        shown, name = "" if name == price.sweep else price.sweep, price.sweep
        cells = [format_hours(price.predicted[kind]) if price.predicted else "-" for kind in MAIN_GPUS]
        table.add_row(shown, price.row, price.remark, *cells)
    total = (f"{hours:,.1f}" for hours in total_hours(prices).values())
    trainings = sum(bool(price.predicted) for price in prices)
    table.add_section()
    table.add_row("all", f"{trainings} of {len(prices)} rows", "", *total)
    print_table(table, console)
    if any(p["limited_by"] == "loader" for price in prices for p in price.predicted.values()):
        console.print(LOADER_LIMITS, highlight=False, soft_wrap=True)
