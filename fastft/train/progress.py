"""The progress of a run: its position, its evaluations, and its result."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fastft.config import Recipe
from fastft.files.evaluations import flatten, headline_top1
from fastft.imagenet import NO_EXPECTATION, describe_expectation, expected_top1
from fastft.model import Arch
from fastft.train.evaluate import Scores
from fastft.train.log import format_seconds


@dataclass
class Progress:
    """The next step to train, and the results so far."""

    epoch: int = 0
    step: int = 0  # within the epoch
    seconds: float = 0.0  # of training, over all resumes
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    logged: dict[str, Any] | None = (
        None  # the part of the next log line that is known already (Meter.state_dict)
    )

    def add(self, epoch: int, scores: Mapping[str, Scores]) -> dict[str, Any]:
        """Append an evaluation: the scores of the "raw" and "ema" weights, or of one of them; returns its entry."""
        entry: dict[str, Any] = {"epoch": epoch, **{weights: asdict(s) for weights, s in scores.items()}}
        self.evaluations.append(entry)
        return entry

    def evaluated(self, epoch: int) -> bool:
        return any(entry["epoch"] == epoch for entry in self.evaluations)

    def best(self) -> dict[str, Any] | None:
        """The evaluation of the best epoch so far."""
        return max(self.evaluations, key=lambda entry: headline_top1(flatten(entry)), default=None)


def describe_model(
    recipe: Recipe, arch: Arch, classes: Sequence[str], data: dict[str, Any]
) -> dict[str, Any]:
    """The part of a checkpoint's state that is constant in a run, as JSON values.

    It makes a checkpoint usable by itself (the architecture's file may move) and tells runs apart when one is resumed.
    """
    description = {
        "name": recipe.name,
        "recipe": recipe.as_dict(),
        "arch": asdict(arch),
        "classes": list(classes),
        "data": data,
    }
    return json.loads(json.dumps(description))


def summarise(progress: Progress, recipe: Recipe) -> dict[str, Any]:
    """The content of result.json: the best and the last evaluation, beside the expected accuracy."""
    return {
        "recipe": recipe.name,
        "epochs": progress.epoch,
        "seconds": progress.seconds,
        "best": progress.best(),
        "last": progress.evaluations[-1] if progress.evaluations else None,
        "expected_top1": expected_top1(recipe),
        "expectation": describe_expectation(recipe),
        "source": recipe.about.source,
        "evaluations": progress.evaluations,
    }


def conclusion(result: dict[str, Any]) -> str:
    """The last log line of a run."""
    best, last = result["best"], result["last"]
    if best is None or last is None:
        return "done; no validation data, nothing was evaluated"
    top1, ema = headline_top1(flatten(best)), ", EMA" if "ema" in best else ""
    parts = [f"best {top1:.3f} (epoch {best['epoch']}{ema})"]
    parts += [f"last EMA {last['ema']['top1']:.3f}"] if "ema" in last else []
    parts += [f"last raw {last['raw']['top1']:.3f}"] if "raw" in last else []
    expected = "" if result["expectation"] == NO_EXPECTATION else f"; {result['expectation']}"
    return f"top-1 in percent: {', '.join(parts)}{expected}; {format_seconds(result['seconds'])} of training"
