"""Read the results of finished runs: best and last epoch, of the EMA and of the raw weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from beton_tools.base.errors import UserError
from fastft.recipe.rules import LIST, NUMBER, check_keys
from fastft.recipe.tables import Row
from fastft.run import run_directory
from fastft.run.evaluations import check_evaluation, standard_error
from fastft.search.planned_runs import PlannedRun

Evaluation = dict[str, Any]  # epoch, raw {top1, samples, ...}, and with an EMA ema {...}


@dataclass(frozen=True)
class Score:
    """top1 in percent, its binomial standard error in points, and the epoch (0-based)."""

    top1: float
    standard_error: float
    epoch: int


@dataclass(frozen=True)
class Outcome:
    """A row with the evaluations of its finished run, or the error that ended it."""

    row: Row
    run: PlannedRun
    evaluations: Sequence[Evaluation] = field(default_factory=tuple)
    error: str | None = None

    def best(self, weights: str) -> Score | None:
        """Best epoch of the "ema" or "raw" weights, chosen on the same images, as in the paper."""
        return max(self.curve(weights), key=lambda score: score.top1, default=None)

    def last(self, weights: str) -> Score | None:
        """Last epoch of the "ema" or "raw" weights."""
        curve = self.curve(weights)
        return curve[-1] if curve else None

    @property
    def ours(self) -> Score | None:
        """The score that is compared with the paper's figure."""
        return self.best(self.row.number)

    @property
    def difference(self) -> float | None:
        """Our top-1 minus the paper's, in percentage points."""
        if self.ours is None or self.row.paper is None:
            return None
        return self.ours.top1 - self.row.paper

    def curve(self, weights: str) -> list[Score]:
        """One score per evaluated epoch."""
        return [_score(e["epoch"], e[weights]) for e in self.evaluations if weights in e]


def read_result(run: PlannedRun) -> list[Evaluation] | None:
    """Evaluations of a run that has trained all its epochs; None if it has not, or its result.json is damaged."""
    try:
        result = run_directory.read_result(run.folder)
        check_keys("result.json", result, {"epochs": NUMBER, "evaluations": LIST})
        for evaluation in result["evaluations"]:
            check_evaluation(evaluation)
    except (UserError, ValueError):
        return None
    done = result["epochs"] >= run.recipe.epochs and result["evaluations"]
    return result["evaluations"] if done else None


def _score(epoch: int, scores: dict[str, Any]) -> Score:
    return Score(scores["top1"], standard_error(scores["top1"], scores["samples"]), epoch)
