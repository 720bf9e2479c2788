"""The evaluations of a run, and the rule that says which epoch is the best."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from beton_tools.base.typed_json import UNSET, Count, Document, Number, Signed, Unset

# result.json and checkpoints: {"epoch": 3, "raw": {"top1": ...}, "ema": {"top1": ...}}, without "ema" if there is no EMA, and
# without "raw" if train.eval_weights is ema; "map" instead of "top1" if multi-label
Evaluation = Mapping[str, Any]
WEIGHTS = {"raw": "raw", "ema": "EMA"}  # and their names in logs
SELECTION = "selection"  # the same of the images of `data.selection_share`, within an evaluation
TOP1, BALANCED_ACCURACY, MAP = "top1", "balanced_accuracy", "map"
SCORE_NAMES = {BALANCED_ACCURACY: "balanced accuracy", TOP1: "top-1", MAP: "mAP"}
BESIDE = {BALANCED_ACCURACY: (TOP1, "top-1"), TOP1: ("top5", "top-5"), MAP: ("macro_f1", "F1")}  # shown after it
# compares weights image by image
PAIRED = {BALANCED_ACCURACY: "balanced accuracy", TOP1: "accuracy", MAP: "share of images with the better labels"}


class _Scores(Document):
    samples: Count
    top1: Number | Unset = UNSET
    map: Number | Unset = UNSET
    thresholds: list[Number] | Unset = UNSET
    balanced_accuracy: Number | Unset = UNSET


class _Disagreements(Document):
    """balanced_gain, balanced_error: of runs whose classes have very different sizes."""

    raw_only: Count
    ema_only: Count
    balanced_gain: Signed | Unset = UNSET
    balanced_error: Number | Unset = UNSET


class _Weights(Document):
    raw: _Scores | Unset = UNSET
    ema: _Scores | Unset = UNSET
    disagreements: _Disagreements | Unset = UNSET

    def check(self, best_by: str) -> None:
        all_scores = [scores for scores in (self.raw, self.ema) if isinstance(scores, _Scores)]
        if not all_scores:
            raise ValueError("an evaluation has no 'raw'")
        if any(getattr(s, best_by) is UNSET for s in all_scores):
            raise ValueError(f"an evaluation has no '{best_by}'")


class StoredEvaluation(_Weights, kw_only=True):
    """An entry of `evaluations` in a checkpoint or a result.json."""

    epoch: Count
    best_by: Literal["top1", "balanced_accuracy", "map"] | Unset = UNSET
    selection: _Weights | Unset = UNSET

    def __post_init__(self) -> None:
        best_by = TOP1 if isinstance(self.best_by, Unset) else self.best_by
        for weights in (self, self.selection):
            if isinstance(weights, _Weights):
                weights.check(best_by)


def flatten(evaluation: Evaluation) -> dict[str, Any]:
    """The scores as an 'eval' line of metrics.jsonl names them, raw_top1, selection_ema_top1 and so on, and `best_by`."""
    scores = {f"{w}_{k}": v for w in WEIGHTS for k, v in evaluation.get(w, {}).items() if k != "thresholds"}
    if SELECTION in evaluation:
        scores |= {f"{SELECTION}_{name}": value for name, value in flatten(evaluation[SELECTION]).items()}
    return scores | {key: evaluation[key] for key in ("best_by",) if key in evaluation}


def main_score(evaluation: Mapping[str, Any]) -> str:
    """The score that compares epochs and weights, of an evaluation or an 'eval' line."""
    return str(evaluation.get("best_by", TOP1))


def describe_figures(scores: Mapping[str, Any]) -> str:
    """The accuracy of chosen weights; of very unequal classes balanced accuracy, then top-1."""
    return ", ".join(f"{name} {scores[score]:.2f} %" for score, name in SCORE_NAMES.items() if score in scores)


def headline_score(line: Mapping[str, Any], score: str) -> float:
    """A score of an 'eval' line: of the EMA weights if there are any, as in the paper, else raw."""
    averaged = f"ema_{score}"
    return float(line[averaged if averaged in line else f"raw_{score}"])


def selection_score(line: Mapping[str, Any]) -> float:
    """The score of an 'eval' line whose largest value, or the first of equal ones, makes the best epoch.

    Top-1, or what `best_by` names: balanced accuracy if the training classes are of very different sizes. Of the images of
    `data.selection_share`, if there are any.
    """
    prefix = f"{SELECTION}_"
    selection = {name.removeprefix(prefix): value for name, value in line.items() if name.startswith(prefix)}
    return headline_score(selection or line, main_score(line))


def best_line(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The 'eval' line of the best epoch. lines: at least one."""
    return max(lines, key=selection_score)


def best_evaluation(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The evaluation of the best epoch; None if there is none."""
    return max(evaluations, key=lambda entry: selection_score(flatten(entry)), default=None)


def standard_error(top1: float, samples: int) -> float:
    """Binomial standard error of an accuracy in percent, in percentage points."""
    return (top1 * (100 - top1) / max(1, samples)) ** 0.5
