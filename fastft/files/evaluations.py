"""The evaluations of a run, and the rule that says which epoch is the best."""

from collections.abc import Mapping
from typing import Any

# result.json and checkpoints: {"epoch": 3, "raw": {"top1": ...}, "ema": {"top1": ...}}, without "ema" if there is no EMA, and
# without "raw" if train.eval_weights is ema
Evaluation = Mapping[str, Any]
WEIGHTS = {"raw": "raw", "ema": "EMA"}  # and their names in logs


def flatten(evaluation: Evaluation) -> dict[str, float]:
    """The scores as an 'eval' line of metrics.jsonl names them: raw_top1, ema_top1, ..."""
    return {
        f"{weights}_{name}": value
        for weights in WEIGHTS
        for name, value in evaluation.get(weights, {}).items()
    }


def headline_top1(line: Mapping[str, Any]) -> float:
    """Top-1 of an 'eval' line: of the EMA weights if there are any, as in the paper, else of the raw weights.

    The best epoch is the first with the largest value.
    """
    return float(line["ema_top1" if "ema_top1" in line else "raw_top1"])
