"""The progress of a run: its position, its evaluations, and its result."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from beton_tools.base.console import format_duration
from fastft.evaluate.scores import Scores
from fastft.model import TowerArch
from fastft.optim.ema import UNTRAINED_SHARE, untrained_share
from fastft.recipe import Recipe
from fastft.recipe.constants import PROBE
from fastft.recipe.training_images import NO_EXPECTATION, describe_expectation, expected_top1
from fastft.run.baseline import Baseline
from fastft.run.chosen_weights import (
    choose_probe,
    choose_weights,
    count_disagreements,
    describe_initial,
    describe_weights,
)
from fastft.run.evaluations import (
    BALANCED_ACCURACY,
    BESIDE,
    MAP,
    SCORE_NAMES,
    SELECTION,
    TOP1,
    WEIGHTS,
    best_evaluation,
    main_score,
)


@dataclass
class Progress:
    """The next step to train, and the results so far."""

    epoch: int = 0
    step: int = 0  # within the epoch
    seconds: float = 0.0  # of training, over all resumes
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    # the part of the next log line that is known already (Meter.state_dict)
    logged: dict[str, Any] | None = None
    step_choice: dict[str, Any] | None = None  # of StepChoice, and the device

    def add(
        self,
        epoch: int,
        scores: Mapping[str, Scores],
        best_by: str = TOP1,
        selection: Mapping[str, Scores] | None = None,
        baseline: Baseline | None = None,
    ) -> dict[str, Any]:
        """Append an evaluation; returns its entry.

        scores: of the "raw" and "ema" weights, or of one of them. best_by: the score that the best epoch is chosen by.
        selection: scores of the images of `data.selection_share`. baseline: of the linear probe that the run starts from.
        """
        entry: dict[str, Any] = {"epoch": epoch, **_compared(scores, best_by, None if selection else baseline)}
        if selection:
            entry[SELECTION] = _compared(selection, best_by, baseline)
        if best_by != TOP1:
            entry["best_by"] = best_by
        self.evaluations.append(entry)
        return entry

    def awaits_evaluation(self, recipe: Recipe) -> bool:
        """True if the epoch that has just ended is to be evaluated and is not yet."""
        is_new = all(entry["epoch"] != self.epoch - 1 for entry in self.evaluations)
        is_due = self.epoch > 0 and (self.epoch % recipe.train.eval_every == 0 or self.epoch == recipe.epochs)
        return self.step == 0 and is_due and is_new

    def is_stalled(self, recipe: Recipe) -> bool:
        """True if the last `train.stop_when` evaluations or more gained nothing, of the weights that would be chosen now.

        Those within the warm-up do not count: as the rate rises, the accuracy may fall for some epochs.
        """
        patience = recipe.train.stop_when
        if patience is None:
            return False
        choice = choose_weights(self.evaluations, self.best(), untrained=self._untrained_share(recipe))
        if choice is None:
            return False
        after = [entry for entry in self.evaluations if entry["epoch"] >= recipe.schedule.warmup_epochs]
        judged = [entry.get(SELECTION, entry).get(choice["kind"]) for entry in after]
        scores = [scores[main_score(self.evaluations[-1])] for scores in judged if scores is not None]
        return bool(scores) and len(scores) - 1 - scores.index(max(scores)) >= patience

    def best(self) -> dict[str, Any] | None:
        """The evaluation of the best epoch so far."""
        return best_evaluation(self.evaluations)

    def choose_weights(self, recipe: Recipe, baseline: Baseline | None) -> dict[str, Any] | None:
        """`choose_weights` so far."""
        before, head_only = None if baseline is None else baseline.as_dict(), recipe.model.trainable_layers == 0
        if recipe.epochs == 0:
            return choose_probe(before)
        return choose_weights(self.evaluations, self.best(), before, self._untrained_share(recipe), head_only)

    def _untrained_share(self, recipe: Recipe) -> float:
        return untrained_share(recipe, self.epoch * recipe.steps_per_epoch() + self.step)


def _compared(scores: Mapping[str, Scores], best_by: str, baseline: Baseline | None) -> dict[str, Any]:
    """The scores of raw and EMA weights, on how many images they disagree, and with the linear probe, where it is given."""
    entry: dict[str, Any] = {weights: s.as_dict() for weights, s in scores.items()}
    predictions = {weights: s.predictions for weights, s in scores.items() if s.predictions is not None}
    right = {weights: p.right_N for weights, p in predictions.items()}
    labels_N = next(iter(predictions.values())).labels_N if predictions and best_by == BALANCED_ACCURACY else None
    if len(right) == len(WEIGHTS):
        entry["disagreements"] = count_disagreements(right, labels_N)
    for weights, mine in right.items():
        probe_right = None if baseline is None else baseline.right_of(mine.shape)
        if probe_right is not None:
            counts = count_disagreements({weights: mine, PROBE: probe_right}, labels_N)
            entry.setdefault("against_probe", {})[weights] = counts
    return entry


def describe_model(
    recipe: Recipe, arch: TowerArch, classes: Sequence[str], data: dict[str, Any], class_counts: Sequence[int] = ()
) -> dict[str, Any]:
    """The part of a checkpoint's state that is constant in a run, as JSON values.

    data: `BetonSet.content` of the training images, and as its `val` of the validation images. class_counts: training images
    by label.

    It makes a checkpoint usable by itself (the architecture's file may move) and tells runs apart when one is resumed.
    """
    description = {
        "name": recipe.name,
        "recipe": recipe.as_dict(),
        "arch": asdict(arch),
        "classes": list(classes),
        "data": data,
        "class_counts": list(class_counts),
    }
    return json.loads(json.dumps(description))


def summarise(progress: Progress, recipe: Recipe, baseline: Baseline | None) -> dict[str, Any]:
    """The content of result.json: the best and the last evaluation, beside the expected accuracy."""
    return {
        "recipe": recipe.name,
        "epochs": progress.epoch,
        "seconds": progress.seconds,
        **({"stopped": _describe_stop(progress, recipe)} if progress.epoch < recipe.epochs else {}),
        **({} if baseline is None else {"baseline": baseline.as_dict()}),
        "best": progress.best(),
        "last": progress.evaluations[-1] if progress.evaluations else None,
        "weights": progress.choose_weights(recipe, baseline),
        "expected_top1": expected_top1(recipe),
        "expectation": describe_expectation(recipe),
        "source": recipe.about.source,
        "evaluations": progress.evaluations,
    }


def _describe_stop(progress: Progress, recipe: Recipe) -> str:
    patience, chooses = recipe.train.stop_when, SELECTION in progress.evaluations[-1]
    images = "left-out training images" if chooses else "validation images, whose accuracy is therefore too high"
    count = "1 evaluation" if patience == 1 else f"{patience} evaluations"
    epochs = f"{progress.epoch} of {recipe.epochs} epochs"
    return f"stopped after {epochs}: no gain in {count} (train.stop_when) on the {images}"


def _figure(scores: Mapping[str, Any], score: str) -> str:
    """The score that compares epochs and weights; where that is not top-1, with another in brackets."""
    other, name = BESIDE[score]
    return f"{scores[score]:.3f}" + ("" if score == TOP1 else f" ({name} {scores[other]:.3f})")


def describe_evaluation(evaluation: Mapping[str, Any]) -> str:
    """The log line of an evaluation."""
    score = main_score(evaluation)

    def listed(evaluated: Mapping[str, Any], images: str) -> str:
        by_name = {name: evaluated[weights] for weights, name in WEIGHTS.items() if weights in evaluated}
        figures = ", ".join(f"{name} {_figure(scores, score)}" for name, scores in by_name.items())
        return f"{figures} % of {next(iter(by_name.values()))['samples']} {images}"

    left_out = f"; {listed(evaluation[SELECTION], 'left-out images')}" if SELECTION in evaluation else ""
    return f"epoch {evaluation['epoch']}: {SCORE_NAMES[score]} {listed(evaluation, 'images')}{left_out}"


def describe_baseline(baseline: Baseline, score: str) -> str:
    """The log line of the linear probe that a run starts from."""
    took = format_duration(baseline.seconds)
    made = f"linear probe of {baseline.images:,} training images in {took}: the head starts from it"
    if baseline.raw is None:
        return made
    figure = f"{SCORE_NAMES[score]} {_figure(baseline.raw, score)} % of {baseline.raw['samples']} images"
    return f"{made}; {figure}, the baseline that fine-tuning must beat"


def describe_unfinished(progress: Progress, recipe: Recipe, baseline: Baseline | None, steps: int) -> list[str]:
    """The log lines of a run that stops early: the weights that are used of it, and an EMA that is still young."""
    choice = progress.choose_weights(recipe, baseline)
    lines = [] if choice is None else [describe_weights(choice)]
    untrained = untrained_share(recipe, steps)
    return [*lines, f"warning: {describe_initial(untrained)}"] if untrained > UNTRAINED_SHARE else lines


def conclusion(result: dict[str, Any]) -> str:
    """The last log line of a run."""
    best, last = result["best"], result["last"]
    stopped = f"{result['stopped']}; " if "stopped" in result else ""
    used, baseline = result["weights"], result.get("baseline", {}).get("raw")
    if used is None:
        return "done; no validation data, nothing was evaluated"
    expected = "" if result["expectation"] == NO_EXPECTATION else f"; {result['expectation']}"
    if best is None or last is None:
        score = MAP if MAP in used else TOP1
        return (
            f"{SCORE_NAMES[score]} in percent: {PROBE} {_figure(baseline, score)}{expected}; {describe_weights(used)}"
        )
    score = main_score(last)
    of_best, chosen = ("ema" if "ema" in best else "raw", best["epoch"]), (used["kind"], used["epoch"])
    shown = {(kind, last["epoch"]): last[kind] for kind in ("ema", "raw") if kind in last} | {of_best: best[of_best[0]]}
    parts = [
        f"{WEIGHTS[key[0]]} {_figure(shown[key], score)} (epoch {key[1]}{', the best' * (key == of_best)})"
        for key in sorted(shown, key=lambda key: key != chosen)
    ]
    if baseline:
        name = PROBE if used["kind"] == PROBE else "frozen-tower baseline"
        parts.insert(name != PROBE, f"{name} {_figure(baseline, score)} (before training)")
    seconds = format_duration(result["seconds"])
    note = used.get("baseline", {}).get("note")
    figures = f"{SCORE_NAMES[score]} in percent: {', '.join(parts)}{expected}"
    line = f"{figures}; {seconds} of training; {describe_weights(used)}"
    return f"{stopped}{line}\nwarning: {note}" if note else f"{stopped}{line}"
