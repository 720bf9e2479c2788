"""Choose which weights of a run are used, by a rule at its end. `find_weights.py` finds them in its run directory.

A run keeps raw and EMA weights from its last epochs (`step-*`) and from its best epoch (`best-*`). If it starts from a linear
probe, it also keeps the probe's head, and perhaps a second probe's head for a larger image size. The rule:

- Take the EMA, as in the paper, unless the raw weights are right on significantly more of the same validation images
  (McNemar's exact test, p < 0.05): then the EMA is not trained yet. If classes have very different sizes, balanced
  accuracy is compared. The raw weights are also taken if the initial weights make up more than half of the EMA, because
  accuracy on few images then says little.
- Take the last epoch, because on few images the best epoch is mostly the luckiest: with 200 images and 80 % accuracy, the
  best of 9 settings gains about 4 points by luck. From 2,000 validation images on, take the best epoch, as in the paper.
- Take the pretrained tower with the probe's head instead, if it is right on significantly more images (the same test).
  After fewer than FEW_STEPS steps, one more image is enough, because such short runs can fall below their probe.
  The probe at a larger image size is compared in the same way. If both are better, the one with the larger lead is taken.
"""

import math
from collections.abc import Sequence
from typing import Literal

from msgspec.structs import replace

from fastft.data.warnings import TRAINING
from fastft.recipe.constants import BEST, EMA, LAST, PROBE, RAW
from fastft.run.baseline import Baseline
from fastft.run.evaluations import MAP, PAIRED, TOP1, WEIGHTS, BestBy, Evaluation, Scores
from fastft.run.paired import SIGNIFICANT, Comparison
from fastft.run.result import Evidence, Gain, WeightChoice
from fastft.run.said import SaidWarning

MOSTLY_INITIAL = 0.5  # above this fraction of initial weights, the raw weights are used instead of the EMA
LEAST_IMAGES_FOR_BEST = 2000
# Some shorter runs ended below their linear probe, but no longer run did (docs/measurements/photos.md, A budget in time)
FEW_STEPS = 150
PROBE_WORDS = "pretrained tower with the linear probe's head"


def choose_weights(
    evaluations: Sequence[Evaluation],
    best: Evaluation | None,
    baseline: Baseline | None = None,
    untrained: float = 0.0,
    head_only: bool = False,
    steps: float = math.inf,
) -> WeightChoice | None:
    """Choose which weights to take. Returns the choice with its reason and evidence, or None without an evaluation.

    If `data.selection_share` reserved images, these decide.

    Args:
        best: the best epoch's evaluation.
        baseline: the linear probe, if the run starts from one, and the probe at a larger image size.
        untrained: the fraction of the EMA that is still initial weights.
        head_only: the tower is not trained, so advice on fine-tuning is left out.
        steps: training steps until the last evaluation.
    """
    if not evaluations or best is None:
        return None
    last = evaluations[-1]
    score, images = last.best_by, last.judged.headline[1].samples
    kind, why, evidence = _kind(last, untrained)
    take, when = _epoch(last, best, kind)
    entry = best if take == BEST else last
    choice = WeightChoice(take=take, kind=kind, epoch=entry.epoch, reason=f"{why}, and {when}", evidence=evidence)
    choice = replace(choice, **_figures(entry.of(kind), score))
    own, larger = (paired.get(kind) for paired in (entry.judged.against_probe, entry.judged.against_larger))
    if baseline is None or baseline.raw is None or own is None:
        return choice
    lead = Comparison.of(own, images, PAIRED[score])
    leads = [(baseline, lead)]
    if baseline.larger is not None and larger is not None:
        leads.append((baseline.larger, Comparison.of(larger, images, PAIRED[score])))
    better = [pair for pair in leads if pair[1].gain < 0 and (pair[1].p_value < SIGNIFICANT or steps < FEW_STEPS)]
    if better:
        probe, loss = min(reversed(better), key=lambda pair: pair[1].gain)
        figures, size = _figures(probe.raw, score), probe.image_size
        choice = replace(choice, take=PROBE, kind=PROBE, image_size=size, reason=_describe_loss(loss, size), **figures)
        note = _advise(loss, True, size)
    else:
        note = "" if lead.gain > lead.error else _advise(lead, False, None)
    return replace(choice, gain=Gain(gain=lead.gain, standard_error=lead.error, note="" if head_only else note))


def _kind(last: Evaluation, untrained: float) -> tuple[Literal["raw", "ema"], str, Evidence]:
    """Return whether raw or EMA weights are taken, why, and the evidence."""
    images, paired = last.judged.headline[1].samples, last.judged.raw_against_ema
    evidence = Evidence(samples=images)
    if last.ema is None:
        return RAW, "there is no EMA", evidence
    kind: Literal["raw", "ema"] = EMA
    why = "the EMA is the default"
    if paired is not None:
        lead = Comparison.of(paired, images, PAIRED[last.best_by])
        evidence = Evidence(
            samples=images,
            raw_only=paired.first_only,
            ema_only=paired.second_only,
            p_value=lead.p_value,
            balanced_gain=paired.balanced_gain,
            balanced_error=paired.balanced_error,
        )
        if lead.gain > 0 and lead.p_value < SIGNIFICANT:
            ahead = f"the raw weights' {lead.measure} is {lead.gain:.2f} points above the EMA's"
            kind, why = RAW, f"{ahead} (p = {lead.p_value:.2g})"
    if kind == EMA and last.raw is not None and untrained > MOSTLY_INITIAL:
        kind, why = RAW, describe_initial(untrained)
    return kind, why, evidence


def _epoch(last: Evaluation, best: Evaluation, kind: str) -> tuple[Literal["best", "last"], str]:
    """Return which epoch is taken, and why."""
    images, what = last.judged.headline[1].samples, "images" if last.selection is None else "left-out images"
    if images < LEAST_IMAGES_FOR_BEST:
        return LAST, f"the last epoch is used because {images:,} {what} are too few to choose one"
    kept = best.headline[0]  # only the weights that select the best epoch are kept from it
    if kind != kept:
        return LAST, f"the last epoch is used because only the best epoch's {WEIGHTS[kept]} weights were kept"
    return BEST, f"epoch {best.epoch} is the best on {images:,} {what}"


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


# the words ---------------------------------------------------------------------------------------------------------------

SHORT_RUNS = f"runs of fewer than {FEW_STEPS} steps can lose accuracy"
ADVICE = (
    "Train longer, try --optim.lr three times larger and smaller, or another --model.image_size (auto tries several)"
)


def _describe_loss(lead: Comparison, size: int | None) -> str:
    """Describe what fine-tuning lost. lead: over the probe. size: the probe's image size, if it is the larger probe."""
    points = f"{-lead.gain:.2f} points of {lead.measure}"
    lost = f"fine-tuning lost {points}" if size is None else f"the fine-tuned model is {points} below it"
    lost = f"{lost} (p = {lead.p_value:.2g})"
    return lost if lead.p_value < SIGNIFICANT else f"{lost}, and {SHORT_RUNS}"


def _advise(lead: Comparison, is_probe: bool, size: int | None) -> str:
    """Note that fine-tuning is not clearly better than a probe.

    Args:
        lead: over the probe.
        is_probe: this probe is used instead.
        size: the probe's image size, if it is the larger probe.
    """
    says = f"fine-tuning changed the {lead.measure} of the linear probe by {lead.gain:+.2f} ± {lead.error:.2f} points"
    if size is not None:
        says = f"the {lead.measure} of the linear probe at {size} px is {-lead.gain:.2f} ± {lead.error:.2f} points above the "
        says += "fine-tuned model's"
    if is_probe:
        found = "a significant loss" if size is None else "a significant difference"
        loss = found if lead.p_value < SIGNIFICANT else f"and {SHORT_RUNS}"
        return f"{says}, {loss}, so the linear probe is used instead. {ADVICE}"
    limit = "not significant" if lead.gain < -lead.error else "within the standard error"
    return f"{says}, which is {limit}. {ADVICE}. --weights=probe selects the linear probe"


def describe_weights(choice: WeightChoice) -> str:
    """Describe the choice in one log line."""
    name = f"{WEIGHTS[choice.kind]} weights of epoch {choice.epoch}" if choice.kind != PROBE else describe_probe(choice)
    return f"predict, eval and export use the {name}: {choice.reason}"


def describe_probe(choice: WeightChoice) -> str:
    """Describe the linear probe that was chosen."""
    return PROBE_WORDS if choice.image_size is None else f"{PROBE_WORDS} at {choice.image_size} px"


def warnings_of_choice(choice: WeightChoice | None) -> list[SaidWarning]:
    """Return the warning that fine-tuning is not clearly better than the linear probe, if the choice has one."""
    if choice is None or choice.gain is None or not choice.gain.note:
        return []
    return [SaidWarning(text=choice.gain.note, about=TRAINING, stage="train")]


def describe_initial(untrained: float) -> str:
    return f"{untrained:.0%} of the EMA's weights are still the initial ones"
