"""Train the rows of sweeps, and report them in the paper's layout: terminal, Markdown, JSON.

A training that fails is reported and the others are continued.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from beton_tools.base.console import compact_table, markdown_table, print_table
from beton_tools.base.errors import UserError
from fastft.data.classes import refuse_multi_label
from fastft.machine.processes import World, connected, find_world
from fastft.photos.counts import count_images, load_counted
from fastft.photos.prepare import line_printer, prepare_overrides
from fastft.recipe import Recipe, load_recipe
from fastft.recipe.recipe_file import is_table, open_sweep
from fastft.recipe.tables import Sweep
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

COLUMNS = ("paper", "ours", "diff", "best EMA", "last EMA", "best raw", "last raw")
NOTE = (
    "Top-1 in percent. 'Ours' is the best epoch of the EMA (of the raw model where the paper has no EMA), "
    "chosen on the validation images as in the paper. ± is the binomial standard error, @ the epoch from 0."
)


def run_sweeps(sweeps: Sequence[Sweep], overrides: Sequence[str], out: Path, console: Console) -> list[Outcome]:
    """Train or resume every selected row; `out/<sweep>/` gets table.md and results.json after every training.

    Run directories are `out/runs/<key>`. Under torchrun every process calls this; the main process writes the reports.
    Photographs are converted once for all rows into `out/data`.

    Raises:
        UserError: a sweep, recipe or override is wrong, or there is no validation data.
        Preempted: stopped by a signal; the same call continues.
    """
    recipes = [load_recipe(sweep.reference(row), overrides) for sweep in sweeps for row in sweep.rows]
    largest = max(recipes, key=lambda recipe: recipe.model.image_size)  # photographs are stored large enough for it
    options, outcomes = recipes[0].train, []
    # one process group for all trainings
    with connected(find_world(options.device, options.timeout_minutes, "train.device")) as world:
        overrides = prepare_overrides(largest, overrides, out, line_printer(console), world)
        planned = [plan_runs(sweep, overrides, out / "runs") for sweep in sweeps]
        runs = [run for row_runs in planned for run in row_runs]
        refuse_multi_label(count_images(runs[0].recipe), "fastft sweep")
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
    """Write table.md (the paper's table with ours below, then all figures of every row) and results.json."""
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
    write_results(folder, title, parts, document)


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


# cost -----------------------------------------------------------------------------------------------------------------


def read_trainings(references: Sequence[str], overrides: Sequence[str]) -> tuple[list[Recipe], int]:
    """(trainings that recipes and the rows of tables need, each once; number of recipes and rows).

    Raises UserError: as `open_sweep` and `load_counted`.
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
