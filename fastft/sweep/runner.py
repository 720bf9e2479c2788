"""Trains what a sweep's rows need; a run that fails is reported and the others go on."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from beton_tools.errors import UserError
from fastft.sweep.definition import Sweep
from fastft.sweep.plan import Run, plan_runs
from fastft.sweep.report import print_table, write_report
from fastft.sweep.results import Outcome, read_result
from fastft.train.loop import NonFinite, train
from fastft.train.preempt import Preempted

ALONE = int(os.environ.get("WORLD_SIZE", 1)) == 1
# under torchrun an error may be one process's own: going on would leave the others waiting for it
PASSED_OVER: tuple[type[Exception], ...] = (Exception,) if ALONE else (UserError, NonFinite)


def run_sweeps(
    sweeps: Sequence[Sweep], overrides: Sequence[str], out: Path, console: Console
) -> list[Outcome]:
    """Run or resume every row; `out/<sweep>/` gets table.md, results.json and plot.png after every training.

    Run directories are `out/runs/<key>`. Under torchrun every process calls this; the main one reports.

    Raises:
        UserError: a sweep, recipe or override is wrong, or there is no validation data.
        Preempted: stopped by a signal; the same call continues.
    """
    planned = [plan_runs(sweep, overrides, out / "runs") for sweep in sweeps]
    if any(run.recipe.data.val is None for runs in planned for run in runs):
        raise UserError("a sweep compares accuracies, which need validation data; set --data.val=FILE.beton")
    if int(os.environ.get("RANK", 0)) > 0:
        console = Console(quiet=True)
    failures: dict[str, str] = {}
    results = [
        _run_sweep(sweep, runs, failures, out / sweep.name, console)
        for sweep, runs in zip(sweeps, planned, strict=True)
    ]
    return [outcome for outcomes in results for outcome in outcomes]


def _run_sweep(
    sweep: Sweep, runs: Sequence[Run], failures: dict[str, str], folder: Path, console: Console
) -> list[Outcome]:
    for number, (row, run) in enumerate(zip(sweep.rows, runs, strict=True), 1):
        if run.key in failures or read_result(run) is not None:
            continue
        console.rule(f"{sweep.name}, row {number} of {len(runs)}: {row.name}")
        _train(run, failures, console)
        if not console.quiet:
            write_report(sweep, _outcomes(sweep, runs, failures), folder)
    outcomes = _outcomes(sweep, runs, failures)
    if not console.quiet:
        write_report(sweep, outcomes, folder)
    print_table(sweep, outcomes, console)
    console.print(f"written: {folder}/table.md, results.json, plot.png", highlight=False)
    return outcomes


def _train(run: Run, failures: dict[str, str], console: Console) -> None:
    try:
        train(run.recipe, console)
    except Preempted:
        raise
    except PASSED_OVER as error:
        failures[run.key] = " ".join(str(error).split()) or type(error).__name__
        console.print(f"failed: {failures[run.key]}", style="red", highlight=False, markup=False)


def _outcomes(sweep: Sweep, runs: Sequence[Run], failures: dict[str, str]) -> list[Outcome]:
    return [
        Outcome(row, run, read_result(run) or (), failures.get(run.key))
        for row, run in zip(sweep.rows, runs, strict=True)
    ]
