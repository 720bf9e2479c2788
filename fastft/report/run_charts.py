"""The charts on a run's page, with the curves of the paper's own runs."""

import json
from functools import cache
from importlib.resources import files

from beton_tools.base.console import counted
from beton_tools.base.typed_json import Document, check
from fastft.evaluate.calibration import Calibration, Reliability
from fastft.recipe.constants import EMA, RAW
from fastft.report.charts import Chart, Series
from fastft.report.run_figures import BEST, all_scores, score_of
from fastft.run.evaluations import MAP, SCORE_NAMES, WEIGHTS, best_evaluation
from fastft.run.run_directory import Run

EPOCHS = "epochs trained"  # the evaluation in epoch 0 is drawn at 1


class Curve(Document):
    """One of the paper's own runs, by epoch."""

    arch: str
    image_size: int
    epochs: int
    train_loss: list[float]
    top1_raw: list[float]
    top1_ema: list[float]


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


def accuracy_charts(run: Run, reference: Curve | None) -> list[Chart]:
    """Draw accuracy, loss and learning rate over epochs, with the reference's curves if there are any."""
    score, epochs = score_of(run), (0, run.recipe.schedule.epochs)  # the whole schedule, so that all charts align

    def evaluated(weights: str, name: str) -> Series:
        points = [(epoch + 1, scores.value(name)) for epoch, kind, scores in all_scores(run) if kind == weights]
        return Series.of(WEIGHTS[weights], weights, points)

    def of_reference(key: str, name: str, style: str) -> Series:
        return Series.of(name, style, enumerate(getattr(reference, key), 1) if reference else ())

    # the accuracy of the linear probe that the run started from, as a line across the schedule
    probe = run.baseline.raw.value(score) if run.baseline and run.baseline.raw else None
    per_epoch = [
        evaluated(RAW, score),
        evaluated(EMA, score),
        Series.of("linear probe", "own reference", [] if probe is None else [(epoch, probe) for epoch in epochs]),
        of_reference("top1_raw", "reference raw", "raw reference"),
        of_reference("top1_ema", "reference EMA", "ema reference"),
    ]
    training = [_logged(run, "this run", "loss"), of_reference("train_loss", "reference", "own reference")]
    validation = [evaluated(RAW, "loss"), evaluated(EMA, "loss")]
    title = SCORE_NAMES[score].capitalize(), EPOCHS, "% of validation images"
    if score == MAP:
        title = "mAP", EPOCHS, "mean average precision over classes, %"
    smoothing = f"cross-entropy, label smoothing {run.recipe.optim.label_smoothing:g}, augmented"
    marks = []
    if best := best_evaluation(run.evaluations):
        marks = [(best.epoch + 1, f"{BEST}, {best.epoch}: {counted(best.epoch + 1, 'epochs')} trained")]
    lr = [_logged(run, "lr", "lr")]
    return [
        Chart(*title, per_epoch, "top", decimals=2, marks=marks, x_range=epochs),
        Chart("Validation loss", EPOCHS, "cross-entropy", validation, "bottom", x_range=epochs),
        Chart("Training loss", EPOCHS, smoothing, training, "bottom", x_range=epochs),
        Chart("Learning rate", EPOCHS, "of the head", lr, from_zero=True, decimals=8, x_range=epochs),
    ]


def speed_charts(run: Run) -> list[Chart]:
    def chart(title: str, unit: str, key: str, name: str, decimals: int, scale: float = 1) -> Chart:
        series, epochs = [_logged(run, name, key, scale)], (0, run.recipe.schedule.epochs)
        return Chart(title, EPOCHS, unit, series, from_zero=True, decimals=decimals, x_range=epochs)

    mfu = [chart("MFU", "% of the device's peak", "mfu", "MFU", 1, 100)] if run.on_gpu else []
    return [
        chart("Throughput", "images/s, all processes", "images_per_second", "images/s", 1),
        *mfu,
        chart("Waiting for data", "% of wall time", "wait_share", "wait", 2, 100),
        chart("Memory", "GiB, peak per process", "memory_gib", "memory", 2),
    ]


def _logged(run: Run, name: str, key: str, scale: float = 1) -> Series:
    """Draw a figure of the logged intervals."""
    logged = [(i.step, getattr(i, key)) for i in run.intervals]
    return Series.of(name, "own", [(run.epoch_of(step), scale * v) for step, v in logged if v is not None])


def reliability_chart(calibration: Calibration, multi_label: bool = False) -> Chart:
    """Draw accuracy over confidence, for the softmax and after temperature scaling. The diagonal is perfect."""
    plain = _series("sigmoid" if multi_label else "softmax", "raw", calibration.plain)
    series = [Series("perfect", "reference", [0, 100], [0, 100]), plain]
    if calibration.scaled is not None:
        series.append(_series(f"temperature {calibration.temperature:.2f}", "ema", calibration.scaled))
    return Chart(
        "Reliability", "probability of a label, %" if multi_label else "confidence, %",
        "images that have the label, %" if multi_label else "accuracy for images with that confidence, %", series,
        from_zero=True, decimals=1, x_range=(0, 100),
    )  # fmt: skip


def _series(name: str, style: str, reliability: Reliability) -> Series:
    filled = reliability.images > 0
    points = (100 * values[filled] for values in (reliability.confidence, reliability.accuracy))
    return Series.of(f"{name}, ECE {reliability.ece:.1f} %", style, zip(*(v.tolist() for v in points), strict=True))
