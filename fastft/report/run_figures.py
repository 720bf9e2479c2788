"""The figures at the top of a run's page and of its sections, with the warnings that they are to be read with."""

from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import NamedTuple

from fastft.data.warnings import ACCURACY, SPEED, TRAINING, About
from fastft.recipe.constants import PROBE
from fastft.report.page import joined, percent
from fastft.run.chosen_weights import warnings_of_choice
from fastft.run.evaluations import BALANCED_ACCURACY, MAP, SCORE_NAMES, TOP1, WEIGHTS, BestBy, Scores, best_evaluation
from fastft.run.run_directory import Run
from fastft.run.said import SaidWarning

BEST = "best epoch"  # text on the tile and on the mark in the chart
Texts = tuple[str, str, str]  # label, value, and the note below


class Tile(NamedTuple):
    """A figure at the top of a section, the note below, and the numbers of the warnings that it is to be read with."""

    label: str
    value: str
    below: str
    warnings: Sequence[int] = ()


def headline(run: Run) -> list[Tile]:
    """Return the results at the top. A warning about the accuracy concerns all of them, one about training the first."""
    return _tiles(run, [*_accuracy(run), *_probe(run), *_f1(run), *_expected(run)], ACCURACY, TRAINING)


def speed_tiles(run: Run) -> list[Tile]:
    return _tiles(run, _speed(run), SPEED)


def _tiles(run: Run, figures: Iterable[Texts], about: About, *of_first: About) -> list[Tile]:
    """about: what the warnings are about that concern all tiles. of_first: the same for the first tile alone."""
    warnings = list(enumerate(run_warnings(run), 1))
    return [
        Tile(*texts, [n for n, w in warnings if w.about == about or (k == 0 and w.about in of_first)])
        for k, texts in enumerate(figures)
    ]


def run_warnings(run: Run) -> list[SaidWarning]:
    """Return what the run's log warned of, and the warning that belongs to the choice of weights."""
    return [*run.warnings, *warnings_of_choice(run.weights)]


# scores ------------------------------------------------------------------------------------------------------------------


def score_of(run: Run) -> BestBy:
    """Return the score that compares epochs and weights. Before the first evaluation it is `TOP1` or `MAP`."""
    return run.evaluations[-1].best_by if run.evaluations else MAP if run.recipe.data.multi_label else TOP1


def all_scores(run: Run) -> Iterator[tuple[int, str, Scores]]:
    """Return (epoch, kind of weights, scores) for all evaluations."""
    for entry in run.evaluations:
        for weights in WEIGHTS:
            if (scores := entry.of(weights)) is not None:
                yield entry.epoch, weights, scores


def used_scores(run: Run) -> tuple[int, str, Scores]:
    """Return (epoch, kind, scores) for the weights that the run chose, or for its best epoch if it made no choice."""
    chosen = run.weights
    for epoch, weights, scores in all_scores(run):
        if chosen is not None and (epoch, weights) == (chosen.epoch, chosen.kind):
            return epoch, weights, scores
    if chosen is not None and chosen.kind == PROBE:
        probe = run.baseline if chosen.image_size is None else run.larger
        if probe is not None and probe.raw is not None:
            return chosen.epoch, PROBE, probe.raw
    best = best_evaluation(run.evaluations) or run.evaluations[-1]
    return best.epoch, *best.headline


# the texts ---------------------------------------------------------------------------------------------------------------


def _accuracy(run: Run) -> Iterator[Texts]:
    """The accuracy of the weights in use, of the best epoch and of the last one."""
    if not run.evaluations:
        return
    score, (epoch, weights, used) = score_of(run), used_scores(run)
    taken = ", used by predict, eval and export" if run.weights else ""
    when = "before training" if weights == PROBE else f"epoch {epoch}"
    if weights == PROBE and run.weights is not None and run.weights.image_size is not None:
        when = f"at {run.weights.image_size} px, without training"
    other = f", top-1 {used.top1:.2f} %" if score == BALANCED_ACCURACY else ""
    below = f"{when}{f', standard error {used.top1_error:.2f}' if score == TOP1 else other}{taken}"
    name = PROBE if weights == PROBE else WEIGHTS[weights]
    yield f"{name} {SCORE_NAMES[score]}", f"{used.value(score):.2f} %", below
    last = run.evaluations[-1]
    for label, entry in ((BEST, best_evaluation(run.evaluations) or last), ("last epoch", last)):
        shown = [f"{n} {s.value(score):.2f} %" for w, n in WEIGHTS.items() if (s := entry.of(w)) is not None]
        yield f"{label}, {entry.epoch}", f"{entry.headline[1].value(score):.2f} %", ", ".join(shown)


def _probe(run: Run) -> Iterator[Texts]:
    """The accuracy of the linear probe that the run started from, and what fine-tuning gained."""
    if run.baseline is None or run.baseline.raw is None:
        return
    score = score_of(run)
    before, gain = run.baseline.raw.value(score), run.weights and run.weights.gain
    if not run.evaluations:
        then = "nothing else was evaluated"
    elif gain:
        every = ": images with more correct labels, minus images with fewer" if score == MAP else ""
        then = f"fine-tuning {gain.gain:+.2f} ± {gain.standard_error:.2f}, paired{every}"
    else:
        then = f"fine-tuning {used_scores(run)[2].value(score) - before:+.2f}"
    yield "linear probe", f"{before:.2f} %", f"ridge regression, {then}"
    if run.larger is not None and run.larger.raw is not None:
        size, value = run.larger.image_size, run.larger.raw.value(score)
        yield f"probe at {size} px", f"{value:.2f} %", "at a larger image size, without training"


def _f1(run: Run) -> Iterator[Texts]:
    if not run.evaluations or (used := used_scores(run)[2]).macro_f1 is None:
        return
    balanced = f"balanced accuracy {used.balanced_accuracy or 0.0:.2f} %"
    beside = {MAP: "thresholds from the other half of the images", TOP1: balanced}.get(score_of(run))
    ece = None if used.ece is None else f"calibration error {used.ece:.1f} %"
    yield "macro F1", f"{used.macro_f1:.2f} %", joined(beside, ece)


def _expected(run: Run) -> Iterator[Texts]:
    about = run.recipe.about
    if run.evaluations and about.top1 is not None and run.on_imagenet:
        value = used_scores(run)[2].value(score_of(run))
        yield "expected", f"{about.top1:g} %", f"{value - about.top1:+.2f} against {about.source}"


def _speed(run: Run) -> Iterator[Texts]:
    if not run.intervals:
        return
    rate = median(i.images_per_second for i in run.intervals)
    mfus = [i.mfu for i in run.intervals if i.mfu is not None]
    wait = percent(median(i.wait_share for i in run.intervals))
    shown = f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"
    yield "images/s", shown, f"median, {wait} of the time waiting for data"
    if run.on_gpu:
        yield (("MFU", percent(median(mfus)), "median") if mfus else ("MFU", "unknown", "no peak known for the device"))
