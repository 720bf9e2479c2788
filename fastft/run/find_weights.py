"""Find the weights that a path and `--weights` select, and what a checkpoint stores about them."""

import dataclasses
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

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
from fastft.run.chosen_weights import MOSTLY_INITIAL, PROBE_WORDS, choose_weights, describe_initial, describe_probe
from fastft.run.evaluations import WEIGHTS, Scores, best_evaluation
from fastft.run.result import WeightChoice, read_result
from fastft.run.run_directory import LARGER_HEAD, PROBE_HEAD, Run

NOT_ENDED = "the run has not ended"
STEMS = {RAW: "model", EMA: "ema"}  # stems of a checkpoint's tensor files


@dataclass(frozen=True)
class ChosenWeights:
    """A checkpoint's weights: their file's stem, their kind ("raw", "ema" or "probe"), and a description in words.

    The probe's weights are not in the checkpoint, but everything else that the model needs is there.

    Attributes:
        image_size: the linear probe's image size if it is larger than the run's, else None.
    """

    path: Path
    stem: str
    kind: str
    description: str
    image_size: int | None = None


def find_weights(path: Path, wanted: str = AUTO) -> ChosenWeights:
    """Find the weights that `path` (a run directory or a checkpoint in it) and `--weights` select.

    Raises:
        UserError: there is no checkpoint, it is damaged or lacks these weights, or the name for the weights is unknown.
    """
    if wanted not in WEIGHT_CHOICES:
        raise UserError(f"no weights are called {wanted}. Choose from {', '.join(WEIGHT_CHOICES)}")
    if is_checkpoint(path):
        if wanted in (BEST, LAST, PROBE):
            raise UserError(f"{path} is one checkpoint. Give its run directory for --weights {wanted}")
        return _of_checkpoint(path, wanted)
    result = read_result(path)
    if wanted == PROBE:
        return _probe(path)
    if wanted == BEST:
        return _newest(path, BEST, AUTO)
    if wanted in WEIGHTS:
        return _newest(path, LAST, wanted)
    # only AUTO and LAST follow the choice
    choice = _choose_so_far(path) if result is None else result.weights
    if wanted == LAST:
        return _newest(path, LAST, AUTO if choice is None or choice.kind == PROBE else choice.kind)
    if choice is None:  # nothing was evaluated
        unfinished = result is None and list_checkpoints(path / "checkpoints")
        return _of_checkpoint(find_checkpoint(path), AUTO, f": {NOT_ENDED}" if unfinished else "")
    reason = f": {choice.reason}"
    return _probe(path, reason, choice) if choice.take == PROBE else _newest(path, choice.take, choice.kind, reason)


def _probe(run: Path, reason: str = "", choice: WeightChoice | None = None) -> ChosenWeights:
    """Return the linear probe that the run starts from, or the probe at a larger image size if `choice` takes it."""
    checkpoints, size = list_checkpoints(run / "checkpoints"), None if choice is None else choice.image_size
    head = PROBE_HEAD if size is None else LARGER_HEAD
    if not checkpoints or not (run / head).is_file():
        raise UserError(f"{run} has no {head}, which only runs with model.head_init=probe have. Give other --weights")
    words = PROBE_WORDS if choice is None else describe_probe(choice)
    return ChosenWeights(checkpoints[-1], PROBE, PROBE, f"{words}{reason}", size)


def with_choice_so_far(run: Run) -> Run:
    """Return the run, with the rule's choice so far as `weights` if the run has not ended.

    `weights` is None if the checkpoint is damaged.
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
    if choice is not None and choice.take != BEST:
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
    """Return a best checkpoint's only weights, or another checkpoint's `kind` weights (default: the EMA, if it has one)."""
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
    """Return which fraction of the EMA is still initial weights, from the steps in the state."""
    return untrained_share(stored_recipe(checkpoint), _steps(checkpoint))


def _steps(checkpoint: Checkpoint) -> float:
    """Return how many steps a checkpoint's weights were trained for, or infinity if it does not say."""
    state, recipe = checkpoint.state, stored_recipe(checkpoint)
    if state.progress is not None:
        return state.progress.epoch * recipe.steps_per_epoch() + state.progress.step
    if state.evaluation is not None:
        return (state.evaluation.epoch + 1) * recipe.steps_per_epoch()
    return math.inf


def stored_scores(checkpoint: Checkpoint, kind: str, image_size: int | None = None) -> Scores | None:
    """Return the scores that a checkpoint's weights ("raw", "ema" or "probe") have on the run's validation images.

    None without an evaluation. image_size: the larger linear probe's image size.
    """
    if kind == PROBE:
        baseline = read_baseline(checkpoint.path.parents[1])
        return None if baseline is None else baseline.raw_at(image_size)
    evaluation = checkpoint.state.own_evaluation
    return None if evaluation is None else evaluation.of(kind)


def stored_thresholds(checkpoint: Checkpoint, kind: str, image_size: int | None = None) -> list[float]:
    """Return the thresholds for a checkpoint's weights, or else from the evaluation before it. Empty without one."""
    found = [stored_scores(checkpoint, kind, image_size), *(e.of(kind) for e in reversed(checkpoint.state.evaluations))]
    return next((scores.thresholds for scores in found if scores is not None and scores.thresholds), [])
