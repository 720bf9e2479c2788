"""What a finished run says about a row: the EMA at its best epoch, as in the paper, and the rest."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastft.sweep.definition import Row
from fastft.sweep.planned_runs import Run

Evaluation = dict[str, Any]  # epoch, raw {top1, samples, ...}, and where there is one ema {...}


@dataclass(frozen=True)
class Score:
    """top1 in percent, its binomial standard error in points, and the epoch (0-based)."""

    top1: float
    standard_error: float
    epoch: int


@dataclass(frozen=True)
class Outcome:
    """A row with what came of it: evaluations of a finished run, or why there are none."""

    row: Row
    run: Run
    evaluations: Sequence[Evaluation] = field(default_factory=tuple)
    error: str | None = None

    def best(self, weights: str) -> Score | None:
        """Of "ema" or "raw"; the epoch is picked on the same images, as the paper does."""
        return max(self.curve(weights), key=lambda score: score.top1, default=None)

    def last(self, weights: str) -> Score | None:
        curve = self.curve(weights)
        return curve[-1] if curve else None

    @property
    def ours(self) -> Score | None:
        """The number that stands beside the paper's."""
        return self.best(self.row.number)

    @property
    def difference(self) -> float | None:
        """Ours - paper's, in points."""
        if self.ours is None or self.row.paper is None:
            return None
        return self.ours.top1 - self.row.paper

    def curve(self, weights: str) -> list[Score]:
        """One score per evaluated epoch."""
        return [_score(e["epoch"], e[weights]) for e in self.evaluations if weights in e]


def read_result(run: Run) -> list[Evaluation] | None:
    """Evaluations of a run that has gone all its epochs; None while it has not."""
    try:
        result = json.loads((run.folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    done = result["epochs"] >= run.recipe.epochs and result["evaluations"]
    return result["evaluations"] if done else None


def _score(epoch: int, scores: dict[str, Any]) -> Score:
    p = scores["top1"] / 100
    return Score(scores["top1"], 100 * (p * (1 - p) / max(1, scores["samples"])) ** 0.5, epoch)
