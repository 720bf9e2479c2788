"""`fastft sweep`: train or resume every row of a table, and report the paper's figures beside ours."""

from fastft.recipe.recipe_file import open_sweep
from fastft.recipe.tables import Row, Sweep, load_sweep
from fastft.search.planned_runs import PlannedRun, plan_run, plan_runs
from fastft.search.price import price_sweeps, print_prices, read_trainings
from fastft.search.sweep import run_sweeps, train_run

__all__ = [
    "PlannedRun", "Row", "Sweep", "load_sweep", "open_sweep", "plan_run", "plan_runs", "price_sweeps", "print_prices",
    "read_trainings", "run_sweeps", "train_run",
]  # fmt: skip
