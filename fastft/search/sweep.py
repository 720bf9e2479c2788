"""Train the rows of sweeps; a training that fails is reported and the others are continued."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from beton_tools.base.errors import UserError
from fastft.photos.prepare import line_printer, prepare_overrides
from fastft.recipe import load_recipe
from fastft.recipe.tables import Sweep
from fastft.search.runs import Outcome, PlannedRun, plan_runs, read_result, train_run
from fastft.search.sweep_report import print_report, write_report
from fastft.train.distributed import World, find_world


def run_sweeps(
    sweeps: Sequence[Sweep], overrides: Sequence[str], out: Path, console: Console
) -> list[Outcome]:
    """Train or resume every selected row; `out/<sweep>/` gets table.md, results.json and plot.png after every training.

    Run directories are `out/runs/<key>`. Under torchrun every process calls this; the main process writes the reports.
    Photographs are converted once for all rows into `out/data`.

    Raises:
        UserError: a sweep, recipe or override is wrong, or there is no validation data.
        Preempted: stopped by a signal; the same call continues.
    """
    recipe = load_recipe(sweeps[0].reference(sweeps[0].rows[0]), overrides)
    overrides = prepare_overrides(recipe, overrides, out, line_printer(console))
    planned = [plan_runs(sweep, overrides, out / "runs") for sweep in sweeps]
    if any(run.recipe.data.val is None for runs in planned for run in runs):
        raise UserError("a sweep compares accuracies and needs validation data; set --data.val=FILE.beton")
    options = planned[0][0].recipe.train
    with find_world(
        options.device, options.timeout_minutes, "train.device"
    ) as world:  # one process group for all trainings
        runner = _Runner(world, [run for runs in planned for run in runs], console)
        results = [
            runner.run(sweep, runs, out / sweep.name) for sweep, runs in zip(sweeps, planned, strict=True)
        ]
    return [outcome for outcomes in results for outcome in outcomes]


class _Runner:
    """Trains rows and keeps the list of what is still to be trained and what has failed."""

    def __init__(self, world: World, runs: Sequence[PlannedRun], console: Console):
        self.world = world
        self.console = console if world.is_main else Console(quiet=True)
        # decided before anything is trained, so that all processes decide from the same files
        self.waiting = {run.key for run in runs if read_result(run) is None}
        self.failures: dict[str, str] = {}

    def run(self, sweep: Sweep, runs: Sequence[PlannedRun], folder: Path) -> list[Outcome]:
        for number, (row, run) in enumerate(zip(sweep.rows, runs, strict=True), 1):
            if run.key in self.waiting and row in sweep.selected_rows:
                self.waiting.remove(run.key)
                self.console.rule(f"{sweep.name}, row {number} of {len(runs)}: {row.title}")
                failure = train_run(run, self.world, self.console)
                if failure is not None:
                    self.failures[run.key] = failure
                self._report(sweep, runs, folder)
        outcomes = self._report(sweep, runs, folder)
        print_report(sweep, outcomes, folder, self.console)
        return outcomes

    def _report(self, sweep: Sweep, runs: Sequence[PlannedRun], folder: Path) -> list[Outcome]:
        outcomes = [
            Outcome(row, run, read_result(run) or (), self.failures.get(run.key))
            for row, run in zip(sweep.rows, runs, strict=True)
        ]
        if self.world.is_main:
            write_report(sweep, outcomes, folder)
        return outcomes
