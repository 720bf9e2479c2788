"""The progress of a run: its position, its evaluations, and its result."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fastft.config import Recipe
from fastft.imagenet import expected_top1
from fastft.model import Arch
from fastft.train.evaluate import Scores
from fastft.train.log import format_seconds


@dataclass
class Progress:
    """Where a run is: the next step to train, and what has been reached."""

    epoch: int = 0
    step: int = 0  # within the epoch
    seconds: float = 0.0  # of training, over all resumes
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    logged: dict[str, Any] | None = None  # what the next line of the log has so far (Meter.state)

    def add(self, epoch: int, raw: Scores, ema: Scores | None) -> None:
        entry: dict[str, Any] = {"epoch": epoch, "raw": asdict(raw)}
        if ema is not None:
            entry["ema"] = asdict(ema)
        self.evaluations.append(entry)

    def evaluated(self, epoch: int) -> bool:
        return any(entry["epoch"] == epoch for entry in self.evaluations)

    def best(self) -> dict[str, Any] | None:
        """The evaluation of the best epoch: by the EMA's top-1 where there is one, as the paper reports."""
        return max(self.evaluations, key=headline_top1, default=None)


def headline_top1(evaluation: dict[str, Any]) -> float:
    return float(evaluation.get("ema", evaluation["raw"])["top1"])


def describe_model(
    recipe: Recipe, arch: Arch, classes: Sequence[str], data: dict[str, Any]
) -> dict[str, Any]:
    """What makes a checkpoint usable by itself: the recipe, and the tower's numbers, as its file may move."""
    return {
        "name": recipe.name,
        "recipe": json.loads(json.dumps(recipe.as_dict())),
        "arch": asdict(arch),
        "classes": list(classes),
        "data": data,
    }


def summarise(progress: Progress, recipe: Recipe) -> dict[str, Any]:
    """Best-epoch EMA (the paper's protocol), last-epoch EMA and raw, in percent, beside what was expected."""
    best, last = progress.best(), progress.evaluations[-1] if progress.evaluations else None
    return {
        "recipe": recipe.name,
        "epochs": progress.epoch,
        "seconds": progress.seconds,
        "best": best,
        "last": last,
        "expected_top1": expected_top1(recipe),
        "source": recipe.about.source,
        "evaluations": progress.evaluations,
    }


def conclusion(result: dict[str, Any]) -> str:
    """One line for the end of a run."""
    best, last = result["best"], result["last"]
    if best is None or last is None:
        return "done; no validation data, nothing was evaluated"
    parts = [f"best {headline_top1(best):.3f} (epoch {best['epoch']}{', EMA' if 'ema' in best else ''})"]
    parts += [f"last EMA {last['ema']['top1']:.3f}"] if "ema" in last else []
    parts += [f"last raw {last['raw']['top1']:.3f}"]
    expected = f"; expected {result['expected_top1']} ({result['source']})" if result["expected_top1"] else ""
    return f"top-1 in percent: {', '.join(parts)}{expected}; {format_seconds(result['seconds'])} of training"
