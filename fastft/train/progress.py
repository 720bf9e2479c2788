"""A run's progress: its position, its evaluations, and its result."""

from collections.abc import Mapping, Sequence

from msgspec.structs import asdict

from beton_tools.base.console import counted, format_duration
from fastft.data.warnings import TRAINING, Warned
from fastft.evaluate.scores import Evaluated
from fastft.optim.ema import UNTRAINED_SHARE, untrained_share
from fastft.recipe import FinalRecipe
from fastft.recipe.constants import EMA, PROBE, RAW
from fastft.recipe.training_images import NO_EXPECTATION, describe_expectation, expected_top1
from fastft.run.baseline import Baseline
from fastft.run.checkpoint import Position
from fastft.run.chosen_weights import (
    choose_probe,
    choose_weights,
    describe_initial,
    describe_weights,
    warnings_of_choice,
)
from fastft.run.evaluations import (
    BALANCED_ACCURACY,
    BESIDE,
    MAP,
    PAIRED,
    SCORE_NAMES,
    TOP1,
    WEIGHTS,
    BestBy,
    ByWeights,
    Evaluation,
    Paired,
    Scores,
    best_evaluation,
)
from fastft.run.paired import compare_predictions
from fastft.run.result import Result, WeightChoice
from fastft.run.said import SaidWarning


class Progress(Position):
    """The next step to train, and the results so far."""

    def add(
        self,
        epoch: int,
        evaluated: Mapping[str, Evaluated],
        best_by: BestBy = TOP1,
        selection: Mapping[str, Evaluated] | None = None,
        baseline: Baseline | None = None,
    ) -> Evaluation:
        """Append an evaluation.

        Args:
            evaluated: the scores for "raw" and "ema" weights, or for one of them.
            best_by: the score that selects the best epoch.
            selection: the same scores on the images that `data.selection_share` reserves.
            baseline: the linear probe that the run starts from, and the probe at a larger image size.
        """
        own = _compared(evaluated, best_by, None if selection else baseline)
        left_out = None if selection is None else _compared(selection, best_by, baseline)
        entry = Evaluation(
            epoch=epoch, best_by=best_by, selection=left_out, raw=own.raw, ema=own.ema,
            raw_against_ema=own.raw_against_ema, against_probe=own.against_probe, against_larger=own.against_larger,
        )  # fmt: skip
        self.evaluations.append(entry)
        return entry

    def frozen(self) -> Position:
        """Return a copy that later steps do not change, for a thread that writes it."""
        return Position(**asdict(self) | {"evaluations": list(self.evaluations)})

    def awaits_evaluation(self, recipe: FinalRecipe) -> bool:
        """True if the epoch that has just ended must still be evaluated."""
        is_new = all(entry.epoch != self.epoch - 1 for entry in self.evaluations)
        return self.step == 0 and self.epoch > 0 and recipe.is_evaluated(self.epoch) and is_new

    def is_stalled(self, recipe: FinalRecipe) -> bool:
        """True if the weights that would be chosen now gained nothing in the last `train.stop_when` or more evaluations.

        Evaluations within the warm-up do not count. While the learning rate rises, accuracy may fall for some epochs.
        """
        patience = recipe.train.stop_when
        if patience is None:
            return False
        choice = choose_weights(self.evaluations, self.best(), untrained=self._untrained_share(recipe))
        if choice is None:
            return False
        after = [entry for entry in self.evaluations if entry.epoch >= recipe.schedule.warmup_epochs]
        judged = [entry.judged.of(choice.kind) for entry in after]
        values = [scores.value(self.evaluations[-1].best_by) for scores in judged if scores is not None]
        return bool(values) and len(values) - 1 - values.index(max(values)) >= patience

    def best(self) -> Evaluation | None:
        """The best epoch's evaluation so far."""
        return best_evaluation(self.evaluations)

    def choose_weights(self, recipe: FinalRecipe, baseline: Baseline | None) -> WeightChoice | None:
        """Apply `choose_weights` to the evaluations so far."""
        head_only = recipe.model.trainable_layers == 0
        if recipe.epochs == 0:
            return choose_probe(baseline)
        share, steps = self._untrained_share(recipe), self._steps(recipe)
        return choose_weights(self.evaluations, self.best(), baseline, share, head_only, steps)

    def _untrained_share(self, recipe: FinalRecipe) -> float:
        return untrained_share(recipe, self._steps(recipe))

    def _steps(self, recipe: FinalRecipe) -> int:
        return self.epoch * recipe.steps_per_epoch() + self.step


def _compared(evaluated: Mapping[str, Evaluated], best_by: str, baseline: Baseline | None) -> ByWeights:
    """Compare raw with EMA scores image by image, and both with the linear probes if these are given."""
    scores = {weights: of_weights.scores for weights, of_weights in evaluated.items()}
    predictions = {weights: of_weights.predictions for weights, of_weights in evaluated.items()}
    right = {weights: p.right_N for weights, p in predictions.items()}
    labels_N = next(iter(predictions.values())).labels_N if best_by == BALANCED_ACCURACY else None

    def against(probe: Baseline | None) -> dict[str, Paired]:
        theirs = {} if probe is None else {weights: probe.right_of(mine.shape) for weights, mine in right.items()}
        return {
            weights: compare_predictions(right[weights], probe_right, labels_N)
            for weights, probe_right in theirs.items() if probe_right is not None
        }  # fmt: skip

    return ByWeights(
        raw=scores.get(RAW), ema=scores.get(EMA), against_probe=against(baseline),
        against_larger=against(baseline and baseline.larger),
        raw_against_ema=compare_predictions(right[RAW], right[EMA], labels_N) if len(right) == len(WEIGHTS) else None,
    )  # fmt: skip


def summarise(
    progress: Progress, recipe: FinalRecipe, baseline: Baseline | None, warnings: Sequence[SaidWarning] = ()
) -> Result:
    """Return the content of result.json: the best and the last evaluation, beside the expected accuracy.

    warnings: the warnings in the log so far.
    """
    weights = progress.choose_weights(recipe, baseline)
    return Result(
        recipe=recipe.name,
        epochs=progress.epoch,
        seconds=progress.seconds,
        stopped=_describe_stop(progress, recipe) if progress.epoch < recipe.epochs else "",
        baseline=baseline and baseline.summary,
        best=progress.best(),
        last=progress.evaluations[-1] if progress.evaluations else None,
        weights=weights,
        expected_top1=expected_top1(recipe),
        expectation=describe_expectation(recipe),
        source=recipe.about.source,
        evaluations=progress.evaluations,
        warnings=[*warnings, *warnings_of_choice(weights)],
    )


def _describe_stop(progress: Progress, recipe: FinalRecipe) -> str:
    patience, chooses = recipe.train.stop_when, progress.evaluations[-1].selection is not None
    images = "left-out training images" if chooses else "validation images, whose accuracy is therefore too high"
    epochs = f"{progress.epoch} of {counted(recipe.epochs, 'epochs')}"
    waited = counted(patience or 0, "evaluations")
    return f"stopped after {epochs}, because {waited} showed no gain (train.stop_when) on the {images}"


def _figure(scores: Scores, score: BestBy) -> str:
    """Format the score that compares epochs and weights. If it is not top-1, another score follows in brackets."""
    other, name = BESIDE[score]
    return f"{scores.value(score):.3f}" + ("" if score == TOP1 else f" ({name} {scores.value(other):.3f})")


def describe_evaluation(evaluation: Evaluation) -> str:
    """Return the log line for an evaluation."""
    score = evaluation.best_by

    def listed(by_weights: ByWeights, images: str) -> str:
        named = [(name, scores) for weights, name in WEIGHTS.items() if (scores := by_weights.of(weights)) is not None]
        figures = ", ".join(f"{name} {_figure(scores, score)}" for name, scores in named)
        return f"{figures} % of {counted(named[0][1].samples, images)}"

    left_out = "" if evaluation.selection is None else f", {listed(evaluation.selection, 'left-out images')}"
    return f"epoch {evaluation.epoch}: {SCORE_NAMES[score]} {listed(evaluation, 'images')}{left_out}"


def describe_baseline(baseline: Baseline, score: BestBy) -> str:
    """Return the log line for the linear probe that a run starts from, and for the probe at a larger image size."""
    took = format_duration(baseline.seconds)
    made = f"fitted to {counted(baseline.images, 'training images')} in {took}"
    if baseline.raw is None:
        return (
            f"linear probe: {made}. The head starts from it. There are no validation images, so nothing will tell whether "
            "fine-tuning is better than this probe"
        )
    figure = (
        f"{SCORE_NAMES[score]} {_figure(baseline.raw, score)} % of {counted(baseline.raw.samples, 'validation images')}"
    )
    line = f"linear probe: {figure}, {made}. The head starts from it, and it is the baseline for fine-tuning"
    if (larger := baseline.larger) is None or larger.raw is None:
        return line
    return f"{line}. At {larger.image_size} px it is {_figure(larger.raw, score)} %, and is used if training ends below that"


def describe_unfinished(progress: Progress, recipe: FinalRecipe, baseline: Baseline | None, steps: int) -> list[str]:
    """Return the log lines for a run that stops early: which weights are used, and whether the EMA is still young."""
    choice = progress.choose_weights(recipe, baseline)
    lines = [] if choice is None else [describe_weights(choice)]
    untrained = untrained_share(recipe, steps)
    return [*lines, Warned(describe_initial(untrained), TRAINING)] if untrained > UNTRAINED_SHARE else lines


def conclusion(result: Result) -> str:
    """Return a run's last log lines: its result, the baseline, which weights are used, and all its warnings."""
    used = result.weights
    stopped = [result.stopped] if result.stopped else []
    if used is None:
        return "\n".join([*stopped, "result: no validation images, so nothing was evaluated", *_warnings(result)])
    lines = [*stopped, f"result: {_describe_result(result, used)}"]
    probe = None if result.baseline is None else result.baseline.raw
    if probe is not None and result.last is not None:
        lines.append(f"baseline: {_describe_probe(probe, used, result.last.best_by)}")
        lines += _describe_larger(result, result.last.best_by)
    lines.append(f"weights: {describe_weights(used)}")
    return "\n".join([*lines, *_warnings(result)])


def _warnings(result: Result) -> list[str]:
    return [f"warning: {warning.text}" for warning in result.warnings]


def _describe_result(result: Result, used: WeightChoice) -> str:
    """Describe the accuracy of the weights that are used, and of the others that were kept."""
    best, last = result.best, result.last
    baseline = result.baseline
    probe = None if baseline is None else baseline.raw
    figures: dict[str, str] = {}  # weights, described -> accuracy
    samples = 0
    score: BestBy = TOP1
    if best is not None and last is not None:
        score, (best_kind, best_scores) = last.best_by, best.headline
        samples = best_scores.samples
        by_weights = {kind: scores for kind in (EMA, RAW) if (scores := last.of(kind)) is not None}
        shown = {(kind, last.epoch): scores for kind, scores in by_weights.items()}
        shown |= {(best_kind, best.epoch): best_scores}
        for (kind, epoch), scores in sorted(shown.items(), key=lambda item: item[0] != (used.kind, used.epoch)):
            is_best = ", the best" if epoch == best.epoch != last.epoch else ""
            figures[f"{WEIGHTS[kind]} weights of epoch {epoch}{is_best}"] = _figure(scores, score)
    elif probe is not None:
        score, samples = TOP1 if probe.map is None else MAP, probe.samples
    if used.kind == PROBE and baseline is not None and (taken := baseline.raw_at(used.image_size)) is not None:
        name = "linear probe" if used.image_size is None else f"linear probe at {used.image_size} px"
        figures = {name: _figure(taken, score)} | figures
    (name, figure), *others = figures.items()
    text = f"{SCORE_NAMES[score]} {figure} % of {counted(samples, 'images')} with the {name}"
    text += f" ({', '.join(f'{other}: {beside}' for other, beside in others)})" if others else ""
    if result.expectation != NO_EXPECTATION:
        text += f", {result.expectation}"
    return text if result.last is None else f"{text}, after {format_duration(result.seconds)} of training"


def _describe_larger(result: Result, score: BestBy) -> list[str]:
    """Describe the larger linear probe's accuracy, if the trained model was compared with one."""
    larger = result.baseline and result.baseline.larger
    if larger is None or larger.raw is None:
        return []
    return [
        f"larger probe: {SCORE_NAMES[score]} {_figure(larger.raw, score)} % with the linear probe at {larger.image_size} px"
    ]


def _describe_probe(probe: Scores, used: WeightChoice, score: BestBy) -> str:
    """Describe the linear probe's accuracy, and the gain over it unless a warning states it."""
    text = f"{SCORE_NAMES[score]} {_figure(probe, score)} % with the linear probe, before training"
    gain = used.gain
    if gain is None or gain.note:
        return text
    return f"{text}. Training gained {gain.gain:+.2f} ± {gain.standard_error:.2f} points of {PAIRED[score]}"
