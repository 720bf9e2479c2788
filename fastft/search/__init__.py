"""Many trainings: the rows of tables (`fastft sweep`), and learning rates within a time budget (`fastft tune`)."""

from fastft.recipe.recipe_file import open_sweep
from fastft.recipe.tables import Row, Sweep, load_sweep
from fastft.search.runs import PlannedRun, plan_run, plan_runs, train_run
from fastft.search.sweep import read_trainings, run_sweeps

__all__ = [
    "PlannedRun", "Row", "Sweep", "load_sweep", "open_sweep", "plan_run", "plan_runs", "read_trainings",
    "run_sweeps", "train_run",
]  # fmt: skip
