"""A table of the paper as one command: its rows trained or resumed, the paper's numbers beside ours."""

from fastft.sweep.definition import Row, Sweep, load_sweep
from fastft.sweep.planned_runs import Run, plan_runs
from fastft.sweep.price import price_sweeps, print_prices, read_trainings
from fastft.sweep.runner import run_sweeps

__all__ = [
    "Row", "Run", "Sweep", "load_sweep", "plan_runs", "price_sweeps", "print_prices", "read_trainings", "run_sweeps",
]  # fmt: skip
