"""`fastft report RUN`: one HTML page for a run directory."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import median

import numpy as np

from beton_tools.base.atomic import check_output, write_text
from beton_tools.base.console import counted, printable
from beton_tools.base.errors import UserError, report_disk_errors
from beton_tools.base.typed_json import Document, check
from beton_tools.read.manifest import Manifest
from beton_tools.read.subset_file import used_files
from fastft.data.warnings import ACCURACY, SPEED, TRAINING, About
from fastft.evaluate.file_report import FileReport
from fastft.evaluate.mistakes import Mistake, RunPredictions, predict_validation, thumbnail
from fastft.recipe import AskedRecipe, Choice, Recipe, differences, load_recipe
from fastft.recipe.constants import AUTO, EMA, PROBE, RAW
from fastft.recipe.recipe_file import RECIPES
from fastft.report.charts import Chart, Series, render_chart
from fastft.report.page import percent, render_page
from fastft.report.run_times import profiled, run_cost, time_split
from fastft.run.chosen_weights import warnings_of_choice, with_choice_so_far
from fastft.run.evaluations import BALANCED_ACCURACY, MAP, SCORE_NAMES, TOP1, WEIGHTS, BestBy, Scores, best_evaluation
from fastft.run.inputs import open_of_run
from fastft.run.predictions import Calibration, Reliability
from fastft.run.run_directory import Run, load_run, read_choices
from fastft.run.said import SaidWarning
from fastft.run.training_labels import read_training_labels

SUFFIXES = (".html", ".htm")
EPOCHS = "epochs trained"  # the evaluation in epoch 0 is drawn at 1
BEST = "best epoch"  # text on the tile and on the mark in the chart
# columns in the table of evaluations, for raw and EMA: title, name in metrics.jsonl, digits
SCORES = (
    ("mAP %", "map", 3),
    ("top-1 %", "top1", 3), ("top-5 %", "top5", 3), ("balanced %", "balanced_accuracy", 3), ("F1 %", "macro_f1", 3),
    ("ECE %", "ece", 2), ("loss", "loss", 4),
)  # fmt: skip
NOT_COMPARED = {"about.top1", "about.source", "data.train", "data.val", "train.run_dir"}

LISTED_CLASSES = 200  # the classes with the lowest F1


class Curve(Document):
    """One of the paper's own runs, by epoch."""

    arch: str
    image_size: int
    epochs: int
    train_loss: list[float]
    top1_raw: list[float]
    top1_ema: list[float]


@dataclass(frozen=True)
class ChangedOption:
    """An option that differs from the base recipe, or was chosen automatically."""

    option: str
    base: object
    run: object
    reason: str


@dataclass(frozen=True)
class DataFile:
    """A file that the run trained or evaluated on. part: see `used_files`. summary: None without a manifest."""

    role: str
    path: str
    part: str
    summary: Mapping[str, object] | None


@dataclass(frozen=True)
class Tile:
    """A figure at the top of a section, the note below, and the numbers of the warnings that it is to be read with."""

    label: str
    value: str
    below: str
    warnings: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class ConfusionCell:
    """A non-zero cell of a confusion matrix. row, column: from 1. share: of the row's images."""

    row: int
    column: int
    images: int
    share: float


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix: the classes' names and the non-zero cells."""

    names: list[str]
    cells: list[ConfusionCell]


@dataclass(frozen=True)
class ClassGain:
    """A class's recall in percent with half of the training images and with all. images: of the class."""

    name: str
    images: int
    half: float
    all: float


@dataclass(frozen=True)
class TrainingImages:
    """Doubtful labels and learning curves, like `TrainingLabels` but with class names and thumbnails."""

    images: int
    wrong: int
    half: float
    all: float
    doubts: list[Mistake]
    classes: list[ClassGain]


def training_images(run: Run) -> TrainingImages | None:
    """Return the run's doubtful labels and learning curves. None if it has none, or its training file is gone."""
    found = read_training_labels(run.folder)
    if found is None:
        return None
    try:
        files = open_of_run(run, "data.train")
        if len(files) != found.images:
            return None
        names, listed = files.class_names, files.read_names()
        doubts = [
            Mistake(
                sample=d.sample, truth=names[d.label], truth_probability=d.label_probability, predicted=names[d.predicted],
                predicted_probability=d.predicted_probability, image=thumbnail(files, d.sample),
                file=printable(listed[d.sample]) if listed else "",
            ) for d in found.doubts
        ]  # fmt: skip
    except UserError:
        return None
    classes = [ClassGain(names[c.label], c.images, c.half, c.all) for c in found.classes]
    gaining = sorted(classes, key=lambda c: (c.half - c.all, c.name))
    return TrainingImages(found.images, found.wrong, found.half, found.all, doubts, gaining[:LISTED_CLASSES])


def render_run(
    run: Run,
    *,
    predictions: RunPredictions | None = None,
    note: str = "",
    price: float | None = None,
    trained: TrainingImages | None = None,
) -> str:
    """Return the page as HTML.

    note: why there are no predictions. price: price per GPU-hour. trained: what is known about the training images.
    """
    reference_name, reference = reference_of(run.recipe.model.arch, run.recipe.model.image_size)
    choices = read_choices(run.folder) or {}
    base = base_recipe(run, reference_name, bool(choices))
    report, shown = predictions and predictions.report, sorted(SCORES, key=lambda s: s[1] != _score(run))
    warnings = run_warnings(run)
    with_images = (c for c in (report.classes if report else ()) if c.images)
    classes = sorted(with_images, key=lambda c: (c.f1 or 0.0, c.name))
    if not run.on_imagenet:
        reference_name, reference = None, None
    return render_page(
        "run.html",
        title=run.folder.resolve().name,
        run=run,
        state=_state(run),
        headline=headline(run),
        warnings=warnings,
        reference_name=reference_name,
        accuracy=[render_chart(c) for c in accuracy_charts(run, reference)],
        machine=machine_line(run),
        speed_figures=_tiles(_speed_figures(run), warnings, [SPEED], [SPEED]),
        speed=[render_chart(c) for c in speed_charts(run)],
        split=time_split(run),
        profile=profiled(run),
        cost=run_cost(run, price),
        mistakes=predictions and predictions.mistakes,
        trained=trained,
        report=report,
        classes=classes[:LISTED_CLASSES],
        num_classes=len(classes),
        confusion=report and confusion(report),
        rejected=predictions.calibration.rejected if predictions else (),
        rejects_foreign=predictions and predictions.calibration.foreign,
        foreign=predictions.foreign if predictions else (),
        reliability=render_chart(reliability_chart(predictions.calibration, _score(run) == MAP)) if predictions else "",
        note=note,
        evaluations=run.evaluations,
        scores=[s for s in shown if any(scores.numbers().get(s[1]) is not None for _, _, scores in _all_scores(run))],
        base=base,
        diff=[] if base is None else recipe_diff(run.recipe, base, choices),
        reasons=bool(choices),
        sections=run.recipe.as_dict(),
        manifests=data_files(run.recipe),
    )


@cache
def reference_curves() -> dict[str, Curve]:
    """Return the paper's own runs by recipe name."""
    name = "reference_curves.json"
    stored = json.loads(files("fastft.report").joinpath(name).read_text("utf-8"))["curves"]
    return {recipe: check(name, curve, Curve) for recipe, curve in stored.items()}


def reference_of(arch: str, image_size: int) -> tuple[str | None, Curve | None]:
    """Return the paper's run for an architecture and image size: (its recipe's name, curve), or (None, None)."""
    same = ((name, c) for name, c in reference_curves().items() if (c.arch, c.image_size) == (arch, image_size))
    return next(same, (None, None))


def base_recipe(run: Run, paper_name: str | None, is_automatic: bool) -> AskedRecipe | None:
    """Return the recipe to compare with. On images other than ImageNet it is the run's own as shipped, or `photos`.

    Returns None if the recipes are not available.
    """
    own = RECIPES / f"{run.recipe.name}.yaml"
    if run.on_imagenet or not (own.is_file() or is_automatic):
        own = RECIPES / f"{paper_name or 'final_b16'}.yaml"
    default = own if own.is_file() else RECIPES / "photos.yaml"
    return load_recipe(default) if default.is_file() else None


def recipe_diff(recipe: Recipe, base: AskedRecipe, choices: Mapping[str, Choice]) -> list[ChangedOption]:
    """List options that differ or were chosen automatically, in schema order."""
    differing, ours = differences(recipe, base), recipe.flat()
    return [
        ChangedOption(
            key, AUTO if key in base.automatic else theirs, ours[key], choices[key].reason if key in choices else ""
        )
        for key, theirs in base.flat().items()
        if (key in differing or key in choices) and key not in NOT_COMPARED
    ]


def data_files(recipe: Recipe) -> list[DataFile]:
    rows = []
    for role, named in (("training", recipe.data.train), ("validation", recipe.data.val)):
        paths, part = ([], "") if named is None else used_files(named)
        rows += [DataFile(role, path, part, _summary(path)) for path in paths]
    return rows


def _summary(path: str) -> Mapping[str, object] | None:
    try:
        manifest = Manifest.of_beton(path)
    except UserError:
        return None
    return None if manifest is None else manifest.summary()


def headline(run: Run) -> list[Tile]:
    """Return the results at the top. A warning about the accuracy concerns all of them, one about training the first."""
    return _tiles(_accuracy_figures(run), run_warnings(run), [ACCURACY, TRAINING], [ACCURACY])


def _tiles(
    figures: Iterable[tuple[str, str, str]],
    warnings: Sequence[SaidWarning],
    first: Sequence[About],
    others: Sequence[About],
) -> list[Tile]:
    """Make tiles. first, others: what the warnings are about that concern the first tile, and the other ones."""
    return [
        Tile(*texts, [n for n, warning in enumerate(warnings, 1) if warning.about in (others if k else first)])
        for k, texts in enumerate(figures)
    ]


def run_warnings(run: Run) -> list[SaidWarning]:
    """Return what the run's log warned of, and the warning that belongs to the choice of weights."""
    return [*run.warnings, *warnings_of_choice(run.weights)]


def machine_line(run: Run) -> str:
    """Describe the run's hardware, as far as it is logged."""
    m = run.machine
    words = [
        f"{m.world_size} x {m.device}" if m.device else "",
        "" if m.cores is None else f"{m.cores} cores",
        m.precision,
        f"torch {m.torch}" if m.torch else "",
    ]
    return ", ".join(filter(None, words))


def _accuracy_figures(run: Run) -> Iterator[tuple[str, str, str]]:
    score = _score(run)
    before, then = run.baseline.raw if run.baseline else None, "nothing else was evaluated"
    if run.evaluations:
        epoch, weights, used = used_scores(run)
        value = used.value(score)
        taken = ", used by predict, eval and export" if run.weights else ""
        when = "before training" if weights == PROBE else f"epoch {epoch}"
        other = f", top-1 {used.top1:.2f} %" if score == BALANCED_ACCURACY else ""
        below = f"{when}{f', standard error {used.top1_error:.2f}' if score == TOP1 else other}{taken}"
        yield f"{PROBE if weights == PROBE else WEIGHTS[weights]} {SCORE_NAMES[score]}", f"{value:.2f} %", below
        best = best_evaluation(run.evaluations) or run.evaluations[-1]
        for label, entry in ((BEST, best), ("last epoch", run.evaluations[-1])):
            shown = [f"{n} {s.value(score):.2f} %" for w, n in WEIGHTS.items() if (s := entry.of(w)) is not None]
            yield f"{label}, {entry.epoch}", f"{entry.headline[1].value(score):.2f} %", ", ".join(shown)
        gain = run.weights and run.weights.gain
        every = ": images with more correct labels, minus images with fewer" if score == MAP else ""
        then = "" if before is None else f"fine-tuning {value - before.value(score):+.2f}"
        if gain:
            then = f"fine-tuning {gain.gain:+.2f} ± {gain.standard_error:.2f}, paired{every}"
    if before is not None:  # the head's accuracy before fine-tuning
        yield "linear probe", f"{before.value(score):.2f} %", f"ridge regression, {then}"
    if not run.evaluations:
        return
    if used.macro_f1 is not None:
        beside = "thresholds of the other half of the images" if score == MAP else ""
        if score == TOP1:
            beside = f"balanced accuracy {used.balanced_accuracy or 0.0:.2f} %"
        ece = "" if used.ece is None else f"calibration error {used.ece:.1f} %"
        yield "macro F1", f"{used.macro_f1:.2f} %", ", ".join(filter(None, (beside, ece)))
    expected = run.recipe.about.top1
    if expected is not None and run.on_imagenet:
        yield "expected", f"{expected:g} %", f"{value - expected:+.2f} against {run.recipe.about.source}"


def _score(run: Run) -> BestBy:
    """Return the score that compares epochs and weights. Before the first evaluation it is `TOP1` or `MAP`."""
    return run.evaluations[-1].best_by if run.evaluations else MAP if run.recipe.data.multi_label else TOP1


def _all_scores(run: Run) -> Iterator[tuple[int, str, Scores]]:
    """Return (epoch, kind of weights, scores) for all evaluations."""
    for entry in run.evaluations:
        for weights in WEIGHTS:
            if (scores := entry.of(weights)) is not None:
                yield entry.epoch, weights, scores


def used_scores(run: Run) -> tuple[int, str, Scores]:
    """Return (epoch, kind, scores) for the weights that the run chose, or for its best epoch if it made no choice."""
    chosen = run.weights
    for epoch, weights, scores in _all_scores(run):
        if chosen is not None and (epoch, weights) == (chosen.epoch, chosen.kind):
            return epoch, weights, scores
    if chosen is not None and chosen.kind == PROBE and run.baseline is not None and run.baseline.raw is not None:
        return chosen.epoch, PROBE, run.baseline.raw
    best = best_evaluation(run.evaluations) or run.evaluations[-1]
    return best.epoch, *best.headline


def _speed_figures(run: Run) -> Iterator[tuple[str, str, str]]:
    if not run.intervals:
        return
    rate = median(i.images_per_second for i in run.intervals)
    mfus = [i.mfu for i in run.intervals if i.mfu is not None]
    wait = percent(median(i.wait_share for i in run.intervals))
    shown = f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"
    yield "images/s", shown, f"median, {wait} of the time waiting for data"
    if run.on_gpu:
        yield (("MFU", percent(median(mfus)), "median") if mfus else ("MFU", "unknown", "no peak known for the device"))


def _state(run: Run) -> str:
    if run.stopped:
        return f"finished: {run.stopped}"
    if run.finished and run.steps >= run.total_steps:
        return f"finished, {counted(run.recipe.epochs, 'epochs')}"
    step = max((int(line.step) for line in (*run.intervals, *run.log.checkpoint)), default=0)
    return f"not finished: step {step:,} of {run.total_steps:,}" if step else "nothing logged yet"


# charts --------------------------------------------------------------------------------------------------------------


def accuracy_charts(run: Run, reference: Curve | None) -> list[Chart]:
    """Draw accuracy, loss and learning rate over epochs, with the reference's curves if there are any."""
    per_epoch = [
        *_evaluated(run, RAW, _score(run)),
        *_evaluated(run, EMA, _score(run)),
        *_probe(run),
        *_reference(reference, "top1_raw", "reference raw", "raw reference"),
        *_reference(reference, "top1_ema", "reference EMA", "ema reference"),
    ]
    training = [
        *_lines(run, [(i.step, i.loss) for i in run.intervals], "this run"),
        *_reference(reference, "train_loss", "reference", "own reference"),
    ]
    validation = [*_evaluated(run, RAW, "loss"), *_evaluated(run, EMA, "loss")]
    title = SCORE_NAMES[_score(run)].capitalize(), EPOCHS, "% of validation images"
    if _score(run) == MAP:
        title = "mAP", EPOCHS, "mean average precision over classes, %"
    smoothing = f"cross-entropy, label smoothing {run.recipe.optim.label_smoothing:g}, augmented"
    lr = _lines(run, [(i.step, i.lr) for i in run.intervals], "lr")
    # the whole schedule, so that all charts on a page align
    epochs = (0, run.recipe.schedule.epochs)
    best = best_evaluation(run.evaluations)
    marks = (
        [] if best is None else [(best.epoch + 1, f"{BEST}, {best.epoch}: {counted(best.epoch + 1, 'epochs')} trained")]
    )
    return [
        Chart(*title, per_epoch, "top", decimals=2, marks=marks, x_range=epochs),
        Chart("Validation loss", EPOCHS, "cross-entropy", validation, "bottom", x_range=epochs),
        Chart("Training loss", EPOCHS, smoothing, training, "bottom", x_range=epochs),
        Chart("Learning rate", EPOCHS, "of the head", lr, from_zero=True, decimals=8, x_range=epochs),
    ]


def speed_charts(run: Run) -> list[Chart]:
    def chart(title: str, unit: str, key: str, name: str, decimals: int, scale: float = 1) -> Chart:
        points = [(i.step, scale * getattr(i, key)) for i in run.intervals if getattr(i, key) is not None]
        series, epochs = _lines(run, points, name), (0, run.recipe.schedule.epochs)
        return Chart(title, EPOCHS, unit, series, from_zero=True, decimals=decimals, x_range=epochs)

    mfu = [chart("MFU", "% of the device's peak", "mfu", "MFU", 1, 100)] if run.on_gpu else []
    return [
        chart("Throughput", "images/s, all processes", "images_per_second", "images/s", 1),
        *mfu,
        chart("Waiting for data", "% of wall time", "wait_share", "wait", 2, 100),
        chart("Memory", "GiB, peak of one process", "memory_gib", "memory", 2),
    ]


def _evaluated(run: Run, weights: str, score: str) -> list[Series]:
    points = [(epoch + 1, scores.value(score)) for epoch, kind, scores in _all_scores(run) if kind == weights]
    return [Series(WEIGHTS[weights], weights, *map(list, zip(*points, strict=True)))] if points else []


def _probe(run: Run) -> list[Series]:
    """Draw the accuracy of the linear probe that the run started from as a line across the schedule."""
    if run.baseline is None or run.baseline.raw is None:
        return []
    accuracy, epochs = run.baseline.raw.value(_score(run)), [0, run.recipe.schedule.epochs]
    return [Series("linear probe", "own reference", epochs, [accuracy, accuracy])]


def _lines(run: Run, points: Sequence[tuple[float, float]], name: str) -> list[Series]:
    """points: (step, value)."""
    x = [run.epoch_of(step) for step, _ in points]
    return [Series(name, "own", x, [value for _, value in points])] if points else []


def _reference(curve: Curve | None, key: str, name: str, style: str) -> list[Series]:
    if curve is None:
        return []
    values = getattr(curve, key)
    return [Series(name, style, list(range(1, len(values) + 1)), values)]


# classes: reliability diagram and confusion matrix --------------------------------------------------------------------


def reliability_chart(calibration: Calibration, multi_label: bool = False) -> Chart:
    """Draw accuracy over confidence, for the softmax and after temperature scaling. The diagonal is perfect."""
    plain = _series("sigmoid" if multi_label else "softmax", "raw", calibration.plain)
    series = [Series("perfect", "reference", [0, 100], [0, 100]), plain]
    if calibration.scaled is not None:
        series.append(_series(f"temperature {calibration.temperature:.2f}", "ema", calibration.scaled))
    return Chart(
        "Reliability", "probability of a label, %" if multi_label else "confidence, %",
        "images that have the label, %" if multi_label else "accuracy of images with that confidence, %", series,
        from_zero=True, decimals=1, x_range=(0, 100),
    )  # fmt: skip


def _series(name: str, style: str, reliability: Reliability) -> Series:
    filled = reliability.images > 0
    confidence, accuracy = (100 * values[filled] for values in (reliability.confidence, reliability.accuracy))
    return Series(f"{name}, ECE {reliability.ece:.1f} %", style, confidence.tolist(), accuracy.tolist())


def confusion(report: FileReport) -> Confusion | None:
    """Return the confusion matrix, or None if there is none."""
    if report.confusion_matrix is None:
        return None
    matrix_KK = np.array(report.confusion_matrix)
    totals = matrix_KK.sum(1)
    cells = [
        ConfusionCell(i + 1, j + 1, int(matrix_KK[i, j]), matrix_KK[i, j] / totals[i])
        for i, j in zip(*np.nonzero(matrix_KK), strict=True)
    ]
    return Confusion([c.name for c in report.classes], cells)


def write_run_page(
    folder: Path,
    out: Path | None = None,
    mistakes: str = "auto",
    weights: str = AUTO,
    price: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a run's page and return its path. price: price per GPU-hour. overwrite: replace an existing file `out`."""
    if out is not None:
        check_output(out, SUFFIXES, overwrite)
    run, out = with_choice_so_far(load_run(folder)), out or folder / "report.html"
    predictions, note = None, "Left out, as asked (--mistakes=never)."
    if mistakes != "never":
        predictions, note = predict_validation(run, insist=mistakes == "always", weights=weights)
    trained = None if mistakes == "never" else training_images(run)
    page = render_run(run, predictions=predictions, note=note, price=price, trained=trained)
    with report_disk_errors(out, "Choose another --out"):
        write_text(out, page)
    return out
