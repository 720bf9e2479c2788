"""The evaluations of a run, and the rule that says which epoch is the best."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastft.recipe.rules import COUNT, NUMBER, OBJECT, SIGNED, Rule, check_keys, one_of

# result.json and checkpoints: {"epoch": 3, "raw": {"top1": ...}, "ema": {"top1": ...}}, without "ema" if there is no EMA, and
# without "raw" if train.eval_weights is ema
Evaluation = Mapping[str, Any]
WEIGHTS = {"raw": "raw", "ema": "EMA"}  # and their names in logs
TOP1, BALANCED_ACCURACY = "top1", "balanced_accuracy"
_EVALUATION: dict[str, Rule] = {
    "epoch": COUNT, "raw": OBJECT, "ema": OBJECT, "disagreements": OBJECT,
    "best_by": one_of(TOP1, BALANCED_ACCURACY),
}  # fmt: skip
_DISAGREEMENTS: dict[str, Rule] = {
    "raw_only": COUNT, "ema_only": COUNT, "balanced_gain": SIGNED, "balanced_error": NUMBER,
}  # fmt: skip
_BALANCED = ("balanced_gain", "balanced_error")  # of runs whose classes have very different sizes


def flatten(evaluation: Evaluation) -> dict[str, Any]:
    """The scores as an 'eval' line of metrics.jsonl names them: raw_top1, ema_top1, ...; and `best_by` if it is there."""
    scores = {
        f"{weights}_{name}": value
        for weights in WEIGHTS
        for name, value in evaluation.get(weights, {}).items()
    }
    return scores | {key: evaluation[key] for key in ("best_by",) if key in evaluation}


def headline_top1(line: Mapping[str, Any]) -> float:
    """Top-1 of an 'eval' line: of the EMA weights if there are any, as in the paper, else of the raw weights."""
    return _headline(line, TOP1)


def selection_score(line: Mapping[str, Any]) -> float:
    """The score of an 'eval' line that the best epoch is the first to have the largest value of.

    Top-1, or what `best_by` names: balanced accuracy if the training classes are of very different sizes.
    """
    return _headline(line, line.get("best_by", TOP1))


def best_line(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The 'eval' line of the best epoch. lines: at least one."""
    return max(lines, key=selection_score)


def best_evaluation(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The evaluation of the best epoch; None if there is none."""
    return max(evaluations, key=lambda entry: selection_score(flatten(entry)), default=None)


def check_evaluation(entry: Any) -> None:
    """Check an entry of `evaluations` in a checkpoint or a result.json.

    Raises:
        ValueError: it lacks a key, or has a value of another kind.
    """
    check_keys("an evaluation", entry, _EVALUATION, optional=(*WEIGHTS, "disagreements", "best_by"))
    if entry.get("disagreements"):
        check_keys("disagreements", entry["disagreements"], _DISAGREEMENTS, optional=_BALANCED)
    if not (evaluated := entry.keys() & set(WEIGHTS)):
        raise ValueError("an evaluation has no 'raw'")
    scores = {TOP1: NUMBER, "samples": COUNT, entry.get("best_by", TOP1): NUMBER}
    for weights in evaluated:
        check_keys("an evaluation", entry[weights], scores)


def standard_error(top1: float, samples: int) -> float:
    """Binomial standard error of an accuracy in percent, in percentage points."""
    return (top1 * (100 - top1) / max(1, samples)) ** 0.5


def _headline(line: Mapping[str, Any], name: str) -> float:
    averaged = f"ema_{name}"
    return float(line[averaged if averaged in line else f"raw_{name}"])
