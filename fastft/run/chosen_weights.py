"""Which weights of a run are used: the rule at its end, and finding them in its run directory.

A run keeps the raw and the EMA weights of its last epochs (`step-*`) and those of its best epoch (`best-*`), and the head of its
linear probe, if it starts from one. The rule:

- The EMA, as in the paper, unless the raw weights are right on significantly more of the same validation images: then the EMA
  is not trained yet (McNemar's exact test, p < 0.05). Where classes are of very different sizes, by balanced accuracy. Also the
  raw weights where more than half of the EMA are the initial weights, whatever few images say.
- The last epoch, because the best of many epochs on few images is mostly the luckiest: the best of 9 settings gains about 4
  points by luck on 200 images at 80 %. From 2,000 validation images on the best epoch, as in the paper.
- The pretrained tower with the probe's head instead, if that is right on significantly more images (the same test).
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from beton_tools.base.errors import UserError
from fastft.optim.ema import UNTRAINED_SHARE, untrained_share
from fastft.recipe.constants import AUTO, BEST, EMA, LAST, PROBE, RAW, WEIGHT_CHOICES
from fastft.run.baseline import read_baseline
from fastft.run.checkpoint import (
    Checkpoint,
    find_checkpoint,
    is_checkpoint,
    list_checkpoints,
    read_checkpoint,
    stored_recipe,
)
from fastft.run.evaluations import MAP, PAIRED, SELECTION, TOP1, WEIGHTS, best_evaluation, main_score
from fastft.run.prediction_metrics import balanced_weights
from fastft.run.run_directory import Run, read_result

SIGNIFICANT = 0.05
MOSTLY_INITIAL = 0.5  # above this share of initial weights the raw weights are used instead of the EMA
LEAST_IMAGES_FOR_BEST = 2000
NOT_ENDED = "the run has not ended"
STEMS = {RAW: "model", EMA: "ema"}  # of a checkpoint's tensor files
PROBE_HEAD = "probe.safetensors"  # of a run directory, as `fastft zeroshot` writes heads
PROBE_WORDS = "pretrained tower with the head of the linear probe"


# the rule ---------------------------------------------------------------------------------------------------------------


def count_disagreements(right: Mapping[str, np.ndarray], labels_N: np.ndarray | None = None) -> dict[str, float]:
    """Images that only one of two models classifies correctly, or more of their labels than the other: `<name>_only` of each.

    right: bool (N,), or multi-label (N, K), by the name of the model, of the same images. labels_N: int64 (N,); given, also
    the balanced accuracy of the first minus that of the second, in points (`balanced_gain`), and the standard error of the
    difference (`balanced_error`).
    """
    first, second = right
    first_N, second_N = (mine if mine.ndim == 1 else mine.sum(1) for mine in right.values())
    counts: dict[str, float] = {
        f"{first}_only": int((first_N > second_N).sum()),
        f"{second}_only": int((second_N > first_N).sum()),
    }
    if labels_N is None:
        return counts
    signed_N = balanced_weights(labels_N) * (first_N.astype(int) - second_N.astype(int))
    return counts | {"balanced_gain": float(signed_N.sum()), "balanced_error": float(np.sqrt((signed_N**2).sum()))}


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided p-value that two models which differ on so many images are equally good (McNemar 1947)."""
    from scipy.special import bdtr  # type: ignore[import-untyped]  # scipy.stats takes half a second to import

    return min(1.0, 2 * float(bdtr(min(first_only, second_only), first_only + second_only, 0.5)))


class Comparison(NamedTuple):
    """How far one model is ahead of another on the same images, in points of `measure`, and the p-value that they are equal."""

    measure: str
    gain: float
    error: float
    p_value: float

    @classmethod
    def of(cls, counts: Mapping[str, Any], first: str, second: str, images: int, measure: str) -> "Comparison":
        """From their disagreements. Balanced accuracy, where it is there: a normal approximation, images weighted by class."""
        if "balanced_gain" in counts:
            gain, error = counts["balanced_gain"], counts["balanced_error"]
            p_value = 1.0 if error == 0 else math.erfc(abs(gain) / error / math.sqrt(2))
            return cls("balanced accuracy", gain, error, p_value)
        ours, theirs = counts[f"{first}_only"], counts[f"{second}_only"]
        variance = (ours + theirs - (ours - theirs) ** 2 / images) / images**2
        return cls(measure, 100 * (ours - theirs) / images, 100 * math.sqrt(variance), mcnemar(ours, theirs))


def choose_weights(
    evaluations: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any] | None,
    baseline: Mapping[str, Any] | None = None,
    untrained: float = 0.0,
    head_only: bool = False,
) -> dict[str, Any] | None:
    """The `weights` entry of result.json: what to take, why, and the evidence; None without an evaluation.

    best: the evaluation of the best epoch. baseline: that of the linear probe, if the run starts from one. untrained: the share
    of the initial weights in the EMA. head_only: the tower is not trained, and gets no advice on fine-tuning. The images
    of `data.selection_share` decide if there are any.
    """
    if not evaluations or best is None:
        return None
    last = evaluations[-1]
    judged, what = (last[SELECTION], "left-out images") if SELECTION in last else (last, "images")
    kind, why = (EMA, "the moving average is the default") if EMA in last else (RAW, "there is no EMA")
    images, evidence, score = int(judged[kind]["samples"]), {}, main_score(last)
    if EMA in last and judged.get("disagreements"):
        compared = Comparison.of(judged["disagreements"], RAW, EMA, images, PAIRED[score])
        evidence = {**judged["disagreements"], "p_value": compared.p_value}
        if compared.gain > 0 and compared.p_value < SIGNIFICANT:
            ahead = f"its {compared.measure} is {compared.gain:.2f} points above the EMA's"
            kind, why = RAW, f"raw, because {ahead} (p = {compared.p_value:.2g})"
    if kind == EMA and RAW in last and untrained > MOSTLY_INITIAL:
        kind, why = RAW, f"raw, because {describe_initial(untrained)}"
    # only the weights that the best epoch is chosen by are kept of it
    by_best = images >= LEAST_IMAGES_FOR_BEST and kind == (EMA if EMA in best else RAW)
    entry = best if by_best else last
    few = f"the last epoch, since {images:,} {what} are too few to choose an epoch by"
    when = f"best epoch by {images:,} {what}" if by_best else few
    if not by_best and images >= LEAST_IMAGES_FOR_BEST:
        when = "last epoch: of the best one only the EMA is kept"
    choice = {
        "take": BEST if by_best else LAST,
        "kind": kind,
        "epoch": int(entry["epoch"]),
        **{name: float(entry[kind][name]) for name in (score, TOP1) if name in entry[kind]},
        "reason": f"{why}; {when}",
        "evidence": {"samples": images, **evidence},
    }
    return (
        choice if baseline is None or RAW not in baseline else _against_probe(choice, entry, baseline[RAW], head_only)
    )


def choose_probe(baseline: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The same entry of a run that stops at the linear probe; None without validation images."""
    if baseline is None or RAW not in baseline:
        return None
    scores = baseline[RAW]
    return {
        "take": PROBE,
        "kind": PROBE,
        "epoch": 0,
        **{name: float(scores[name]) for name in (MAP, TOP1) if name in scores},
        "reason": "the run has no steps (schedule.stop_epoch=0)",
        "evidence": {"samples": int(scores["samples"])},
    }


def _against_probe(
    choice: dict[str, Any], entry: Mapping[str, Any], probe: Mapping[str, Any], head_only: bool
) -> dict[str, Any]:
    """The choice with `baseline`: its comparison with the linear probe, and a note where fine-tuning is not clearly better.

    entry: the evaluation of the chosen weights. probe: the scores of the linear probe.
    """
    kind, images, scores = choice["kind"], choice["evidence"]["samples"], [s for s in PAIRED if s in choice]
    paired = entry.get(SELECTION, entry).get("against_probe", {}).get(kind)
    if paired is None:  # the probe was scored on other images
        return choice
    delta = Comparison.of(paired, kind, PROBE, images, PAIRED[scores[0]])
    says = f"fine-tuning changes the {delta.measure} of the frozen-tower baseline by {delta.gain:+.2f} ± {delta.error:.2f} points"
    advice = "train longer, try --optim.lr three times larger and smaller, or another --model.image_size (auto tries several)"
    note = ""
    if delta.gain < 0 and delta.p_value < SIGNIFICANT:
        reason = (
            f"fine-tuning is worse than the probe: {delta.gain:.2f} points of {delta.measure} (p = {delta.p_value:.2g})"
        )
        choice |= {"take": PROBE, "kind": PROBE, "reason": reason} | {s: float(probe[s]) for s in scores}
        note = f"{says}, significantly: the baseline is used instead; {advice}"
    elif delta.gain <= delta.error:
        limit = "not significantly" if delta.gain < -delta.error else "within the standard error"
        note = f"{says}, {limit}; {advice}; --weights=probe takes the baseline"
    compared = {"gain": delta.gain, "standard_error": delta.error}
    return {**choice, "baseline": {**compared, "note": "" if head_only else note}}


def describe_weights(choice: Mapping[str, Any]) -> str:
    """The choice as one line of the log."""
    name = f"{WEIGHTS.get(choice['kind'])} weights of epoch {choice['epoch']}"
    return f"predict, eval and export take the {PROBE_WORDS if choice['kind'] == PROBE else name}: {choice['reason']}"


def describe_initial(untrained: float) -> str:
    return f"{untrained:.0%} of the EMA's weights are still the initial ones"


# finding them -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChosenWeights:
    """The weights of a checkpoint: the stem of their file, their kind ("raw", "ema" or "probe"), and all of it in words.

    Those of the probe are not in the checkpoint, which has the rest of what the model needs.
    """

    path: Path
    stem: str
    kind: str
    description: str


def find_weights(path: Path, wanted: str = AUTO) -> ChosenWeights:
    """The weights that `path`, a run directory or a checkpoint in it, and `--weights` mean.

    Raises UserError: there is no checkpoint, or it is damaged or does not hold these weights, or there are none of this name.
    """
    if wanted not in WEIGHT_CHOICES:
        raise UserError(f"no weights are called {wanted}; choose from {', '.join(WEIGHT_CHOICES)}")
    if is_checkpoint(path):
        if wanted in (BEST, LAST, PROBE):
            raise UserError(f"{path} is one checkpoint; give its run directory for --weights {wanted}")
        return _of_checkpoint(path, wanted)
    result = read_result(path)
    record = result.get("weights") or {}
    if not result and wanted in (AUTO, LAST):  # the only ones that follow the choice
        record = _choose_so_far(path) or {}
    if wanted == PROBE:
        return _probe(path)
    if wanted == AUTO and record:
        find = _probe if record["take"] == PROBE else partial(_newest, take=record["take"], kind=record["kind"])
        return find(path, reason=f": {record['reason']}")
    if wanted == AUTO:  # nothing is evaluated
        unfinished = not result and list_checkpoints(path / "checkpoints")
        return _of_checkpoint(find_checkpoint(path), AUTO, f": {NOT_ENDED}" if unfinished else "")
    if wanted == BEST:
        return _newest(path, BEST, AUTO)
    chosen = record.get("kind") if record.get("kind") != PROBE else AUTO
    return _newest(path, LAST, chosen or AUTO if wanted == LAST else wanted)


def _probe(run: Path, reason: str = "") -> ChosenWeights:
    checkpoints = list_checkpoints(run / "checkpoints")
    if not checkpoints or not (run / PROBE_HEAD).is_file():
        raise UserError(f"{run} has no {PROBE_HEAD}, which runs with model.head_init=probe keep; give other --weights")
    return ChosenWeights(checkpoints[-1], PROBE, PROBE, f"{PROBE_WORDS}{reason}")


def with_choice_so_far(run: Run) -> Run:
    """The run; if it has not ended, `weights` are those that the rule takes so far, or empty if its checkpoint is damaged."""
    if run.finished:
        return run
    with suppress(UserError):
        return replace(run, weights=_choose_so_far(run.folder) or {})
    return run


def _choose_so_far(run: Path) -> dict[str, Any] | None:
    """The choice of a run that has not ended, by the evaluations before its newest checkpoint."""
    checkpoints = list_checkpoints(run / "checkpoints")
    if not checkpoints:
        return None
    checkpoint = read_checkpoint(checkpoints[-1], needed=())
    progress = checkpoint.state.get("progress", {})
    evaluations = progress.get("evaluations", [])
    share, head_only = _untrained_share(checkpoint), stored_recipe(checkpoint).model.trainable_layers == 0
    baseline = read_baseline(run)
    before = None if baseline is None else baseline.as_dict()
    choice = choose_weights(evaluations, best_evaluation(evaluations), before, share, head_only)
    if choice is not None and choice["take"] == LAST:
        choice["reason"] += f"; {NOT_ENDED}"
    return choice


def _newest(run: Path, take: str, kind: str, reason: str = "") -> ChosenWeights:
    """The weights of a run's best or last checkpoint."""
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    checkpoints = list_checkpoints(folder, "best" if take == BEST else "step")
    if not checkpoints:
        raise UserError(f"{run} has no checkpoint of its {take} epoch; see {folder}, or give other --weights")
    return _of_checkpoint(checkpoints[-1], AUTO if take == BEST else kind, reason)


def _of_checkpoint(path: Path, kind: str, reason: str = "") -> ChosenWeights:
    """The only weights of a best checkpoint, or those of `kind` of another (default: the EMA, if it has one)."""
    checkpoint = read_checkpoint(path, needed=())
    untrained, is_noted = _untrained_share(checkpoint), False
    stem, words = STEMS[RAW], f"weights of the best epoch, {path.name}"
    if path.name.startswith(BEST):
        own = EMA if EMA in (evaluation_of(checkpoint.state) or {}) else RAW
        if kind not in (AUTO, own):
            raise UserError(f"{path} has no {kind} weights, only those that its epoch was chosen by ({own})")
        kind = own
    else:
        has_ema = (path / f"{STEMS[EMA]}.safetensors").exists()
        if kind == AUTO:
            kind = EMA if has_ema and untrained <= MOSTLY_INITIAL else RAW
            is_noted = has_ema
        if kind == EMA and not has_ema:
            raise UserError(f"{path} has no EMA weights; give --weights raw")
        stem, words = STEMS[kind], f"weights of {path.name}"
    notes = [f"{WEIGHTS[kind]} {words}{reason}"]
    if untrained > UNTRAINED_SHARE and (is_noted or kind == EMA):
        notes.append(describe_initial(untrained))
    return ChosenWeights(path, stem, kind, "; ".join(notes))


def _untrained_share(checkpoint: Checkpoint) -> float:
    """Share of the initial weights in the EMA, by the steps that the state names."""
    state = checkpoint.state
    if not state.get("progress") and not state.get("evaluation"):
        return 0.0
    best = state.get("evaluation") or {"epoch": 0}
    progress = state.get("progress", {"epoch": best["epoch"] + 1, "step": 0})
    recipe = stored_recipe(checkpoint)
    return untrained_share(recipe, progress["epoch"] * recipe.steps_per_epoch() + progress["step"])


def evaluation_of(state: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The evaluation of the weights of a checkpoint's state; None if they were not evaluated."""
    if "evaluation" in state:
        return state["evaluation"]
    progress = state.get("progress", {})
    done = progress.get("epoch", 0) - 1 if progress.get("step") == 0 else None
    return next((e for e in progress.get("evaluations", ()) if e["epoch"] == done), None)


def stored_scores(checkpoint: Checkpoint, kind: str) -> Mapping[str, Any]:
    """Scores of a checkpoint's weights ("raw", "ema" or "probe") on the run's validation images; empty without an evaluation."""
    if kind == PROBE:
        baseline = read_baseline(checkpoint.path.parents[1])
        return (baseline and baseline.raw) or {}
    return (evaluation_of(checkpoint.state) or {}).get(kind, {})


def stored_thresholds(checkpoint: Checkpoint, kind: str) -> list[float]:
    """The thresholds of a checkpoint's weights, or else of the evaluation before it; empty without one."""
    before = reversed(checkpoint.state.get("progress", {}).get("evaluations", ()))
    all_scores = [stored_scores(checkpoint, kind), *(e.get(kind, {}) for e in before)]
    return next((scores["thresholds"] for scores in all_scores if "thresholds" in scores), [])
