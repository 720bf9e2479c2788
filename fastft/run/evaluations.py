"""A run's evaluations, the score that compares them, and the rule that selects the best epoch.

Each class defines the type, format and validation for a part of checkpoints and result.json.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from beton_tools.base.typed_json import Count, Document, Number, Numbers, Signed
from fastft.recipe.constants import EMA, RAW

WEIGHTS = {RAW: "raw", EMA: "EMA"}  # and their names in logs
SELECTION = "selection"  # prefix for scores on the images that `data.selection_share` reserves
BestBy = Literal["top1", "balanced_accuracy", "map"]
TOP1: BestBy = "top1"
BALANCED_ACCURACY: BestBy = "balanced_accuracy"
MAP: BestBy = "map"
IMBALANCED = 10.0  # above this ratio between class sizes, balanced accuracy compares epochs and weights
SCORE_NAMES: dict[BestBy, str] = {BALANCED_ACCURACY: "balanced accuracy", TOP1: "top-1", MAP: "mAP"}
BESIDE = {BALANCED_ACCURACY: (TOP1, "top-1"), TOP1: ("top5", "top-5"), MAP: ("macro_f1", "F1")}  # shown after it
# scores that compare weights image by image
PAIRED: dict[BestBy, str] = {
    BALANCED_ACCURACY: "balanced accuracy", TOP1: "accuracy",
    MAP: "accuracy by image (images with more correct labels, minus images with fewer)",
}  # fmt: skip


class Scores(Document, kw_only=True, omit_defaults=True):
    """One model's scores on one set of images, in percent except for the loss. None if a score does not apply.

    Attributes:
        samples: number of images.
        loss: mean cross-entropy without label smoothing. For multi-label files, it is also averaged over classes.
        top1: None for multi-label files, where `map` takes its place. top5: None with at most 5 classes.
        ece: expected calibration error. `ece_scaled` is the error after dividing the logits by `temperature`. None if
            these were not kept.
        thresholds: for multi-label files, a threshold for each class's probability.
        foreign_below: 95 % of the images reach this log-sum-exp over their logits. None if the logits were not kept.
    """

    samples: Count
    loss: Number
    top1: Number | None = None
    top5: Number | None = None
    balanced_accuracy: Number | None = None
    macro_f1: Number | None = None
    ece: Number | None = None
    temperature: Number | None = None
    ece_scaled: Number | None = None
    map: Number | None = None
    thresholds: list[Number] | None = None
    foreign_below: Signed | None = None

    def value(self, score: str) -> float:
        """Return a score by name. The model must have it."""
        return float(getattr(self, score))

    def numbers(self) -> Numbers:
        """Return the scores that the model has, by name."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if isinstance(value, (int, float))}

    @property
    def figures(self) -> dict[BestBy, float]:
        """Return the scores that may compare epochs and weights, as far as this model has them."""
        return {name: value for name in SCORE_NAMES if (value := getattr(self, name)) is not None}

    @property
    def top1_error(self) -> float:
        """Binomial standard error of top-1, in percentage points."""
        top1 = self.top1 or 0.0
        return (top1 * (100 - top1) / max(1, self.samples)) ** 0.5


class Paired(Document, omit_defaults=True):
    """Two models on the same images: how often only one of them is right, or has more labels right.

    Attributes:
        balanced_gain: the first model's balanced accuracy minus the second's, in points, if class sizes differ a lot.
        balanced_error: this difference's standard error.
    """

    first_only: Count
    second_only: Count
    balanced_gain: Signed | None = None
    balanced_error: Number | None = None


class ByWeights(Document, kw_only=True, omit_defaults=True):
    """Scores on the same images for raw and EMA weights. One of them is None if only the other is evaluated.

    Attributes:
        raw_against_ema: None unless both are evaluated.
        against_probe: each kind of weights compared with the linear probe, if there is one.
        against_larger: the same comparison with the linear probe at a larger image size.
    """

    raw: Scores | None = None
    ema: Scores | None = None
    raw_against_ema: Paired | None = None
    against_probe: dict[str, Paired] = msgspec.field(default_factory=dict)
    against_larger: dict[str, Paired] = msgspec.field(default_factory=dict)

    def of(self, weights: str) -> Scores | None:
        return {RAW: self.raw, EMA: self.ema}.get(weights)

    @property
    def headline(self) -> tuple[str, Scores]:
        """The EMA and its scores if there are any, as in the paper, else the raw weights."""
        if self.ema is not None:
            return EMA, self.ema
        assert self.raw is not None
        return RAW, self.raw

    def check(self, best_by: str) -> None:
        """Raise ValueError if there are no scores, or if the score that compares epochs is missing."""
        evaluated = [scores for scores in (self.raw, self.ema) if scores is not None]
        if not evaluated:
            raise ValueError("an evaluation has no 'raw'")
        if any(getattr(scores, best_by) is None for scores in evaluated):
            raise ValueError(f"an evaluation has no '{best_by}'")


class Evaluation(ByWeights, kw_only=True, omit_defaults=True):
    """The scores after an epoch, on the validation images and on images that `data.selection_share` reserves.

    Attributes:
        best_by: the score that compares epochs and weights. It is balanced accuracy if classes have very different
            sizes.
    """

    epoch: Count
    best_by: BestBy = TOP1
    selection: ByWeights | None = None

    def __post_init__(self) -> None:
        for scores in (self, self.selection):
            if scores is not None:
                scores.check(self.best_by)

    @property
    def judged(self) -> ByWeights:
        """The scores that choices are based on. If `data.selection_share` reserves images, these give the scores."""
        return self.selection or self

    @property
    def selection_score(self) -> float:
        """The score that selects the best epoch. The largest value wins, and of equal ones the first."""
        return self.judged.headline[1].value(self.best_by)


def best_evaluation(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """Return the best epoch's evaluation, or None if there is none."""
    return max(evaluations, key=lambda entry: entry.selection_score, default=None)


def deciding_score(multi_label: bool, class_counts: Sequence[int]) -> BestBy:
    """Return the score that compares epochs and weights. class_counts: training images by label."""
    present = [count for count in class_counts if count] or [1]
    return MAP if multi_label else BALANCED_ACCURACY if max(present) > IMBALANCED * min(present) else TOP1


def describe_imbalance(class_counts: Sequence[int]) -> str:
    present = [count for count in class_counts if count]
    return (
        f"classes have {min(present):,} to {max(present):,} training images, so balanced accuracy compares epochs and weights. "
        "--logit-adjustment (fastft eval, predict, export) corrects for the class sizes"
    )


def describe_figures(scores: Mapping[BestBy, float]) -> str:
    """Format the chosen weights' accuracy. With very unequal classes: balanced accuracy, then top-1."""
    return ", ".join(f"{name} {scores[score]:.2f} %" for score, name in SCORE_NAMES.items() if score in scores)


# as a flat line of metrics.jsonl --------------------------------------------------------------------------------------


def flatten(scores: ByWeights, selection: ByWeights | None = None, best_by: BestBy = TOP1) -> dict[str, float | str]:
    """Return `best_by` and the scores, named as in metrics.jsonl's 'eval' lines: raw_top1, selection_ema_top1, ..."""
    line: dict[str, float | str] = {}
    for weights in WEIGHTS:
        if (of_weights := scores.of(weights)) is not None:
            line |= {f"{weights}_{name}": value for name, value in of_weights.numbers().items()}
    if selection is not None:
        line |= {f"{SELECTION}_{name}": value for name, value in flatten(selection).items()}
    return line if best_by == TOP1 else line | {"best_by": best_by}


def unflatten(line: Mapping[str, object]) -> dict[str, object]:
    """Invert `flatten`, as JSON. Other keys than scores stay as they are."""
    nested: dict[str, object] = {}
    parts: dict[str, dict[str, object]] = {}
    for key, value in line.items():
        prefix, _, name = key.partition("_")
        if name and prefix in (*WEIGHTS, SELECTION):
            parts.setdefault(prefix, {})[name] = value
        else:
            nested[key] = value
    return nested | {prefix: unflatten(part) if prefix == SELECTION else part for prefix, part in parts.items()}
