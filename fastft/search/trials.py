"""The trainings of a search and its result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastft.recipe import Recipe
from fastft.recipe.constants import RAW
from fastft.run.chosen_weights import choose_weights
from fastft.run.evaluations import TOP1
from fastft.search import PlannedRun
from fastft.search.estimate import FinalFigures
from fastft.search.settings import Setting


@dataclass(frozen=True)
class ShortRun:
    """A complete run of a setting, or the error that ended it.

    rung: from 0. score: top-1 or, with very unequal classes, balanced accuracy (`measure`) of the last epoch on the validation
    images in percent; None if it failed. weights: "raw" or "ema", those that the run chose.
    """

    setting: Setting
    rung: int
    epochs: int
    run: PlannedRun
    score: float | None = None
    measure: str = TOP1
    weights: str = RAW
    failure: str | None = None

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe


@dataclass(frozen=True)
class Result:
    """A search so far. skipped: (setting, epochs) that did not fit into the budget.

    complete: whether the best setting was trained in full. optimism: see `fastft.search.estimate`; None with a test file.
    """

    recipe: Recipe
    layers: int
    rungs: Sequence[int]
    trials: list[ShortRun]
    best: ShortRun
    skipped: list[tuple[Setting, int]]
    complete: bool
    spent: float
    figures: FinalFigures | None = None
    optimism: float | None = None
    test: Path | None = None


def finished_trial(
    setting: Setting, rung: int, epochs: int, run: PlannedRun, evaluations: Sequence[Mapping[str, Any]]
) -> ShortRun:
    last = evaluations[-1]
    chosen, measure = choose_weights(evaluations, last), last.get("best_by", TOP1)
    assert chosen is not None  # there is an evaluation
    weights = chosen["kind"]
    return ShortRun(setting, rung, epochs, run, float(last[weights][measure]), measure, weights)


def best_trials(trials: list[ShortRun], count: int) -> list[ShortRun]:
    """The best finished trials; of equal ones the first."""
    finished = [trial for trial in trials if trial.score is not None]
    return sorted(finished, key=lambda trial: -(trial.score or 0.0))[:count]
