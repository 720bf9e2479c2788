"""Train the rows of sweeps; a training that fails is reported and the others are continued."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from beton_tools.errors import UserError
from fastft.config import load_recipe
from fastft.files.sweep_file import Sweep
from fastft.photos.prepare import prepare_overrides
from fastft.sweep.planned_runs import Run, plan_runs
from fastft.sweep.report import print_table, write_report
from fastft.sweep.results import Outcome, read_result
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
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    return prepare_overrides(recipe, overrides, out, say)


class _Runner:
    """Trains rows and keeps the list of what is still to be trained and what has failed."""

    def __init__(self, world: World, runs: Sequence[Run], console: Console):
        self.is_main = world.is_main
        self.console = console if world.is_main else Console(quiet=True)
        # decided before anything is trained, so that all processes decide from the same files
        self.waiting = {run.key for run in runs if read_result(run) is None}
        self.failures: dict[str, str] = {}
        # an error that only one process has must end the sweep: the others would wait for it in the next training
        self.reported = (Exception,) if world.size == 1 else (UserError, NonFinite)

    def run(self, sweep: Sweep, runs: Sequence[Run], folder: Path) -> list[Outcome]:
        for number, (row, run) in enumerate(zip(sweep.rows, runs, strict=True), 1):
            if run.key in self.waiting and row in sweep.selected_rows:
                self.waiting.remove(run.key)
                self.console.rule(f"{sweep.name}, row {number} of {len(runs)}: {row.title}")
                self._train(run)
                self._report(sweep, runs, folder)
        outcomes = self._report(sweep, runs, folder)
        print_table(sweep, outcomes, self.console)
        self.console.print(f"written: {folder}/table.md, results.json, plot.png", highlight=False)
        return outcomes

    def _train(self, run: Run) -> None:
        try:
            train(run.recipe, self.console)
        except (Preempted, LocalRankError, PeerFailed):
            raise
        except self.reported as error:
            self.failures[run.key] = " ".join(str(error).split()) or type(error).__name__
            self.console.print(
                f"failed: {self.failures[run.key]}", style="red", highlight=False, markup=False
            )

    def _report(self, sweep: Sweep, runs: Sequence[Run], folder: Path) -> list[Outcome]:
        outcomes = [
            Outcome(row, run, read_result(run) or (), self.failures.get(run.key))
            for row, run in zip(sweep.rows, runs, strict=True)
        ]
        if self.is_main:
            write_report(sweep, outcomes, folder)
        return outcomes
