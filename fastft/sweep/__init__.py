"""`fastft sweep`: train or resume every row of a table, and report the paper's figures beside ours."""

from fastft.files.recipe_file import open_sweep
from fastft.files.sweep_file import Row, Sweep, load_sweep
from fastft.sweep.planned_runs import PlannedRun, plan_run, plan_runs
from fastft.sweep.price import price_sweeps, print_prices, read_trainings
from fastft.sweep.runner import run_sweeps, train_run

__all__ = [
    "PlannedRun", "Row", "Sweep", "load_sweep", "open_sweep", "plan_run", "plan_runs", "price_sweeps", "print_prices",
    "read_trainings", "run_sweeps", "train_run",
]  # fmt: skip
