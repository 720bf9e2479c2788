"""Choose which weights of a run are used, by a rule at its end, and find them in its run directory.

A run keeps the raw and the EMA weights of its last epochs (`step-*`) and of its best epoch (`best-*`), and the head of
its linear probe, if it starts from one. The rule:

- Take the EMA, as in the paper, unless the raw weights are right on significantly more of the same validation images
  (McNemar's exact test, p < 0.05): then the EMA is not trained yet. If classes have very different sizes, balanced
  accuracy is compared. The raw weights are also taken if more than half of the EMA are the initial weights, whatever
  few images say.
- Take the last epoch, because on few images the best of many epochs is mostly the luckiest: the best of 9 settings
  gains about 4 points by luck on 200 images at 80 %. From 2,000 validation images on, take the best epoch, as in the
  paper.
- Take the pretrained tower with the probe's head instead, if it is right on significantly more images (the same test).
  After fewer than FEW_STEPS steps it is enough that it is right on more images, however few: such runs can lose.
"""

import dataclasses
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from msgspec.structs import replace

from beton_tools.base.errors import UserError
from fastft.data.warnings import TRAINING
from fastft.optim.ema import UNTRAINED_SHARE, untrained_share
from fastft.recipe.constants import AUTO, BEST, EMA, LAST, PROBE, RAW, WEIGHT_CHOICES
from fastft.run.baseline import Baseline, read_baseline
from fastft.run.checkpoint import (
    Checkpoint,
    find_checkpoint,
    is_checkpoint,
    list_checkpoints,
    read_checkpoint,
    stored_recipe,
)
from fastft.run.evaluations import MAP, PAIRED, TOP1, WEIGHTS, BestBy, Evaluation, Paired, Scores, best_evaluation
from fastft.run.predictions import balanced_weights
from fastft.run.result import Evidence, Gain, WeightChoice, read_result
from fastft.run.run_directory import PROBE_HEAD, Run
from fastft.run.said import SaidWarning

SIGNIFICANT = 0.05
MOSTLY_INITIAL = 0.5  # above this fraction of initial weights, the raw weights are used instead of the EMA
LEAST_IMAGES_FOR_BEST = 2000
# Shorter runs have ended below their linear probe, and no longer one has (docs/measurements/photos.md, A budget in time)
FEW_STEPS = 150
NOT_ENDED = "the run has not ended"
STEMS = {RAW: "model", EMA: "ema"}  # stems of a checkpoint's tensor files
PROBE_WORDS = "pretrained tower with the head of the linear probe"


# the rule ---------------------------------------------------------------------------------------------------------------


def compare_predictions(first: np.ndarray, second: np.ndarray, labels_N: np.ndarray | None = None) -> Paired:
    """Count the images on which only one of two models is right, or has more labels right. Both see the same images.

    Args:
        first, second: bool (N,), or multi-label (N, K): whether each model is right.
        labels_N: int64 (N,). If given, the gain in balanced accuracy is computed too.
    """
    first_N, second_N = (right if right.ndim == 1 else right.sum(1) for right in (first, second))
    gain = error = None
    if labels_N is not None:
        signed_N = balanced_weights(labels_N) * (first_N.astype(int) - second_N.astype(int))
        gain, error = float(signed_N.sum()), float(np.sqrt((signed_N**2).sum()))
    return Paired(
        first_only=int((first_N > second_N).sum()), second_only=int((second_N > first_N).sum()),
        balanced_gain=gain, balanced_error=error,
    )  # fmt: skip


def mcnemar(first_only: int, second_only: int) -> float:
    """Return the exact two-sided p-value that two models which differ on these images are equally good (McNemar 1947)."""
    from scipy.special import bdtr  # type: ignore[import-untyped]  # scipy.stats takes half a second to import

    return min(1.0, 2 * float(bdtr(min(first_only, second_only), first_only + second_only, 0.5)))


class Comparison(NamedTuple):
    """One model's lead over another on the same images, in points of `measure`, and the p-value that they are equal."""

    measure: str
    gain: float
    error: float
    p_value: float

    @classmethod
    def of(cls, paired: Paired, images: int, measure: str) -> "Comparison":
        """Compare the first model with the second, by balanced accuracy if it is there.

        Its p-value is a normal approximation with images weighted by class.
        """
        if paired.balanced_gain is not None and paired.balanced_error is not None:
            gain, error = paired.balanced_gain, paired.balanced_error
            p_value = 1.0 if error == 0 else math.erfc(abs(gain) / error / math.sqrt(2))
            return cls("balanced accuracy", gain, error, p_value)
        ours, theirs = paired.first_only, paired.second_only
        variance = (ours + theirs - (ours - theirs) ** 2 / images) / images**2
        return cls(measure, 100 * (ours - theirs) / images, 100 * math.sqrt(variance), mcnemar(ours, theirs))


def choose_weights(
    evaluations: Sequence[Evaluation],
    best: Evaluation | None,
    baseline: Baseline | None = None,
    untrained: float = 0.0,
    head_only: bool = False,
    steps: float = math.inf,
) -> WeightChoice | None:
    """Choose which weights to take. Returns the choice with its reason and evidence, or None without an evaluation.

    The images of `data.selection_share` decide if there are any.

    Args:
        best: the evaluation of the best epoch.
        baseline: the linear probe, if the run starts from one.
        untrained: the fraction of the initial weights in the EMA.
        head_only: the tower is not trained, and gets no advice on fine-tuning.
        steps: of training, until the last evaluation.
    """
    if not evaluations or best is None:
        return None
    last = evaluations[-1]
    judged, what = last.judged, "images" if last.selection is None else "left-out images"
    kind: Literal["raw", "ema"] = RAW if last.ema is None else EMA
    why = "there is no EMA" if last.ema is None else "the EMA is the default"
    images, score = judged.headline[1].samples, last.best_by
    evidence = Evidence(samples=images)
    if judged.raw_against_ema is not None:
        paired = judged.raw_against_ema
        compared = Comparison.of(paired, images, PAIRED[score])
        evidence = Evidence(
            samples=images, raw_only=paired.first_only, ema_only=paired.second_only, p_value=compared.p_value,
            balanced_gain=paired.balanced_gain, balanced_error=paired.balanced_error,
        )  # fmt: skip
        if compared.gain > 0 and compared.p_value < SIGNIFICANT:
            ahead = f"the raw weights' {compared.measure} is {compared.gain:.2f} points above the EMA's"
            kind, why = RAW, f"{ahead} (p = {compared.p_value:.2g})"
    if kind == EMA and last.raw is not None and untrained > MOSTLY_INITIAL:
        kind, why = RAW, describe_initial(untrained)
    # only the weights that select the best epoch are kept from it
    by_best = images >= LEAST_IMAGES_FOR_BEST and kind == best.headline[0]
    entry = best if by_best else last
    few = f"the last epoch is used because {images:,} {what} are too few to choose one"
    when = f"epoch {entry.epoch} is the best on {images:,} {what}" if by_best else few
    if not by_best and images >= LEAST_IMAGES_FOR_BEST:
        when = f"the last epoch is used because only the {WEIGHTS[best.headline[0]]} of the best one was kept"
    take: Literal["best", "last"] = BEST if by_best else LAST
    choice = WeightChoice(take=take, kind=kind, epoch=entry.epoch, reason=f"{why}, and {when}", evidence=evidence)
    choice = replace(choice, **_figures(entry.of(kind), score))
    if baseline is None or baseline.raw is None or (paired_with_probe := entry.judged.against_probe.get(kind)) is None:
        return choice
    compared = Comparison.of(paired_with_probe, images, PAIRED[score])
    return _against_probe(choice, compared, baseline.raw, score, head_only, steps)


def choose_probe(baseline: Baseline | None) -> WeightChoice | None:
    """Return the choice for a run that stops at the linear probe. None without validation images."""
    if baseline is None or baseline.raw is None:
        return None
    choice = WeightChoice(
        take=PROBE, kind=PROBE, epoch=0, reason="the run has no steps (schedule.stop_epoch=0)",
        evidence=Evidence(samples=baseline.raw.samples),
    )  # fmt: skip
    return replace(choice, **_figures(baseline.raw, TOP1 if baseline.raw.map is None else MAP))


def _figures(scores: Scores | None, score: BestBy) -> dict[str, float | None]:
    """Return the fields of a choice that give the weights' accuracy: top-1, and the score that compares weights."""
    return {} if scores is None else {name: getattr(scores, name) for name in (TOP1, score)}


def _against_probe(
    choice: WeightChoice, delta: Comparison, probe: Scores, score: BestBy, head_only: bool, steps: float
) -> WeightChoice:
    """Add the gain over the linear probe to a choice, and a note if fine-tuning is not clearly better.

    Args:
        delta: the chosen weights' gain over the probe.
    """
    says = (
        f"fine-tuning changed the {delta.measure} of the linear probe by {delta.gain:+.2f} ± {delta.error:.2f} points"
    )
    advice = "Train longer, try --optim.lr three times larger and smaller, or another --model.image_size (auto tries several)"
    note, few = "", f"runs of fewer than {FEW_STEPS} steps can lose accuracy"
    if delta.gain < 0 and (delta.p_value < SIGNIFICANT or steps < FEW_STEPS):
        worse = f"{-delta.gain:.2f} points of {delta.measure} (p = {delta.p_value:.2g})"
        why, loss = f"fine-tuning lost {worse}", "a significant loss"
        if delta.p_value >= SIGNIFICANT:
            why, loss = f"{why}, and {few}", f"and {few}"
        choice = replace(choice, take=PROBE, kind=PROBE, reason=why, **_figures(probe, score))
        note = f"{says}, {loss}, so the linear probe is used instead. {advice}"
    elif delta.gain <= delta.error:
        limit = "not significant" if delta.gain < -delta.error else "within the standard error"
        note = f"{says}, which is {limit}. {advice}. --weights=probe selects the linear probe"
    return replace(choice, gain=Gain(gain=delta.gain, standard_error=delta.error, note="" if head_only else note))


def describe_weights(choice: WeightChoice) -> str:
    """Describe the choice in one log line."""
    name = PROBE_WORDS if choice.kind == PROBE else f"{WEIGHTS[choice.kind]} weights of epoch {choice.epoch}"
    return f"predict, eval and export use the {name}: {choice.reason}"


def warnings_of_choice(choice: WeightChoice | None) -> list[SaidWarning]:
    """Return the warning that fine-tuning is not clearly better than the linear probe, if the choice has one."""
    if choice is None or choice.gain is None or not choice.gain.note:
        return []
    return [SaidWarning(text=choice.gain.note, about=TRAINING, stage="train")]


def describe_initial(untrained: float) -> str:
    return f"{untrained:.0%} of the EMA's weights are still the initial ones"


# finding them -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChosenWeights:
    """The weights of a checkpoint: their file's stem, their kind ("raw", "ema" or "probe"), and a description in words.

    The probe's weights are not in the checkpoint, which has everything else that the model needs.
    """

    path: Path
    stem: str
    kind: str
    description: str


def find_weights(path: Path, wanted: str = AUTO) -> ChosenWeights:
    """Find the weights that `path` (a run directory or a checkpoint in it) and `--weights` select.

    Raises:
        UserError: no checkpoint, a damaged one, one without these weights, or an unknown name for weights.
    """
    if wanted not in WEIGHT_CHOICES:
        raise UserError(f"no weights are called {wanted}. Choose from {', '.join(WEIGHT_CHOICES)}")
    if is_checkpoint(path):
        if wanted in (BEST, LAST, PROBE):
            raise UserError(f"{path} is one checkpoint. Give its run directory for --weights {wanted}")
        return _of_checkpoint(path, wanted)
    result = read_result(path)
    choice = None if result is None else result.weights
    if result is None and wanted in (AUTO, LAST):  # only these two follow the choice
        choice = _choose_so_far(path)
    if wanted == PROBE:
        return _probe(path)
    if wanted == AUTO and choice is not None:
        find = _probe if choice.take == PROBE else partial(_newest, take=choice.take, kind=choice.kind)
        return find(path, reason=f": {choice.reason}")
    if wanted == AUTO:  # nothing was evaluated
        unfinished = result is None and list_checkpoints(path / "checkpoints")
        return _of_checkpoint(find_checkpoint(path), AUTO, f": {NOT_ENDED}" if unfinished else "")
    if wanted == BEST:
        return _newest(path, BEST, AUTO)
    chosen = AUTO if choice is None or choice.kind == PROBE else choice.kind
    return _newest(path, LAST, chosen if wanted == LAST else wanted)


def _probe(run: Path, reason: str = "") -> ChosenWeights:
    checkpoints = list_checkpoints(run / "checkpoints")
    if not checkpoints or not (run / PROBE_HEAD).is_file():
        raise UserError(
            f"{run} has no {PROBE_HEAD}, which only runs with model.head_init=probe have. Give other --weights"
        )
    return ChosenWeights(checkpoints[-1], PROBE, PROBE, f"{PROBE_WORDS}{reason}")


def with_choice_so_far(run: Run) -> Run:
    """Return the run.

    If it has not ended, `weights` is what the rule takes so far, or None if its checkpoint is damaged.
    """
    if run.finished:
        return run
    with suppress(UserError):
        return dataclasses.replace(run, weights=_choose_so_far(run.folder))
    return run


def _choose_so_far(run: Path) -> WeightChoice | None:
    """Choose for a run that has not ended, by the evaluations before its newest checkpoint."""
    checkpoints = list_checkpoints(run / "checkpoints")
    if not checkpoints:
        return None
    checkpoint = read_checkpoint(checkpoints[-1], needed=())
    evaluations, head_only = checkpoint.state.evaluations, stored_recipe(checkpoint).model.trainable_layers == 0
    best, share = best_evaluation(evaluations), _untrained_share(checkpoint)
    choice = choose_weights(evaluations, best, read_baseline(run), share, head_only, _steps(checkpoint))
    if choice is not None and choice.take == LAST:
        return replace(choice, reason=f"{choice.reason} ({NOT_ENDED})")
    return choice


def _newest(run: Path, take: str, kind: str, reason: str = "") -> ChosenWeights:
    """Return the weights in a run's best or last checkpoint."""
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    checkpoints = list_checkpoints(folder, "best" if take == BEST else "step")
    if not checkpoints:
        raise UserError(f"{run} has no checkpoint of its {take} epoch. See {folder}, or give other --weights")
    return _of_checkpoint(checkpoints[-1], AUTO if take == BEST else kind, reason)


def _of_checkpoint(path: Path, kind: str, reason: str = "") -> ChosenWeights:
    """Return a best checkpoint's only weights, or the `kind` weights in another one (default: the EMA, if it has one)."""
    checkpoint = read_checkpoint(path, needed=())
    untrained, is_noted = _untrained_share(checkpoint), False
    stem, words = STEMS[RAW], f"weights of the best epoch, {path.name}"
    if path.name.startswith(BEST):
        evaluation = checkpoint.state.own_evaluation
        own = RAW if evaluation is None else evaluation.headline[0]
        if kind not in (AUTO, own):
            raise UserError(
                f"{path} has no {kind} weights, only the {own} weights by which its epoch was chosen. Give --weights {own}"
            )
        kind = own
    else:
        has_ema = (path / f"{STEMS[EMA]}.safetensors").exists()
        if kind == AUTO:
            kind = EMA if has_ema and untrained <= MOSTLY_INITIAL else RAW
            is_noted = has_ema
        if kind == EMA and not has_ema:
            raise UserError(f"{path} has no EMA weights. Give --weights raw")
        stem, words = STEMS[kind], f"weights of {path.name}"
    notes = [f"{WEIGHTS[kind]} {words}{reason}"]
    if untrained > UNTRAINED_SHARE and (is_noted or kind == EMA):
        notes.append(describe_initial(untrained))
    return ChosenWeights(path, stem, kind, ", ".join(notes))


def _untrained_share(checkpoint: Checkpoint) -> float:
    """Return the fraction of the initial weights in the EMA, from the number of steps in the state."""
    return untrained_share(stored_recipe(checkpoint), _steps(checkpoint))


def _steps(checkpoint: Checkpoint) -> float:
    """Return the steps that a checkpoint's weights were trained for, infinity if it does not say."""
    state, recipe = checkpoint.state, stored_recipe(checkpoint)
    if state.progress is not None:
        return state.progress.epoch * recipe.steps_per_epoch() + state.progress.step
    if state.evaluation is not None:
        return (state.evaluation.epoch + 1) * recipe.steps_per_epoch()
    return math.inf


def stored_scores(checkpoint: Checkpoint, kind: str) -> Scores | None:
    """Return the scores of a checkpoint's weights ("raw", "ema" or "probe") on the run's validation images.

    None without an evaluation.
    """
    if kind == PROBE:
        baseline = read_baseline(checkpoint.path.parents[1])
        return None if baseline is None else baseline.raw
    evaluation = checkpoint.state.own_evaluation
    return None if evaluation is None else evaluation.of(kind)


def stored_thresholds(checkpoint: Checkpoint, kind: str) -> list[float]:
    """Return the thresholds of a checkpoint's weights, or else of the evaluation before it. Empty without one."""
    found = [stored_scores(checkpoint, kind), *(e.of(kind) for e in reversed(checkpoint.state.evaluations))]
    return next((scores.thresholds for scores in found if scores is not None and scores.thresholds), [])
