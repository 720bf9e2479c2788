"""Train the rows of sweeps; a training that fails is reported and the others are continued."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from beton_tools.base.errors import UserError
from fastft.photos.prepare import line_printer, prepare_overrides
from fastft.recipe import load_recipe
from fastft.recipe.tables import Sweep
from fastft.search.planned_runs import PlannedRun, plan_runs
from fastft.search.sweep_report import print_report, write_report
from fastft.search.sweep_results import Outcome, read_result
from fastft.train.distributed import World, find_world
from fastft.train.exceptions import LocalRankError, NonFinite, PeerFailed, Preempted
from fastft.train.loop import train


def run_sweeps(
    sweeps: Sequence[Sweep], overrides: Sequence[str], out: Path, console: Console
) -> list[Outcome]:
    """Train or resume every selected row; `out/<sweep>/` gets table.md, results.json and plot.png after every training.

    Run directories are `out/runs/<key>`. Under torchrun every process calls this; the main process writes the reports.

    Raises:
        UserError: a sweep, recipe or override is wrong, or there is no validation data.
        Preempted: stopped by a signal; the same call continues.
    """
    overrides = _prepare(sweeps[0], overrides, out, console)
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


def _prepare(sweep: Sweep, overrides: Sequence[str], out: Path, console: Console) -> list[str]:
    """The command line, with photographs converted once for all rows into `out/data`."""
    recipe = load_recipe(sweep.reference(sweep.rows[0]), overrides)
    return prepare_overrides(recipe, overrides, out, line_printer(console))


def train_run(run: PlannedRun, world: World, console: Console) -> str | None:
    """Train or resume a run of several; returns the error that ended it, which is printed, or None.

    Raises:
        Preempted: stopped; the same call continues.
        UserError: an error of one process only, which must end all runs: the others would wait for it in the next one.
    """
    reported = (Exception,) if world.size == 1 else (UserError, NonFinite)
    try:
        train(run.recipe, console)
    except (Preempted, LocalRankError, PeerFailed):
        raise
    except reported as error:
        failure = " ".join(str(error).split()) or type(error).__name__
        console.print(f"failed: {failure}", style="red", highlight=False, markup=False)
        return failure
    return None


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
                self._train(run)
                self._report(sweep, runs, folder)
        outcomes = self._report(sweep, runs, folder)
        print_report(sweep, outcomes, self.console)
        self.console.print(f"written: {folder}/table.md, results.json, plot.png", highlight=False)
        return outcomes

    def _train(self, run: PlannedRun) -> None:
        failure = train_run(run, self.world, self.console)
        if failure is not None:
            self.failures[run.key] = failure

    def _report(self, sweep: Sweep, runs: Sequence[PlannedRun], folder: Path) -> list[Outcome]:
        outcomes = [
            Outcome(row, run, read_result(run) or (), self.failures.get(run.key))
            for row, run in zip(sweep.rows, runs, strict=True)
        ]
        if self.world.is_main:
            write_report(sweep, outcomes, folder)
        return outcomes
