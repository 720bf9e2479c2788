"""Train the rows of sweeps; a training that fails is reported and the others are continued."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from beton_tools.base.errors import UserError
from fastft.photos.prepare import line_printer, prepare_overrides
from fastft.recipe import load_recipe
from fastft.recipe.tables import Sweep
from fastft.search.results import Outcome, read_result
from fastft.search.runs import PlannedRun, plan_runs, train_run
from fastft.search.sweep_report import print_report, write_report
from fastft.train.distributed import World, find_world


def run_sweeps(
    sweeps: Sequence[Sweep], overrides: Sequence[str], out: Path, console: Console
) -> list[Outcome]:
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
            raise UserError(
                "a sweep compares accuracies and needs validation data; set --data.val=FILE.beton"
            )
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
