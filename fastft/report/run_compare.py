"""`fastft report RUN RUN ...`: one page to compare runs: accuracy with paired differences, options, time, curves."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from beton_tools.base.atomic import check_writable, write_text
from beton_tools.base.errors import UserError, report_disk_errors
from beton_tools.read.beton_set import BetonSet
from fastft.recipe.constants import PROBE
from fastft.report.charts import Chart, Series, render_chart
from fastft.report.compare import Fact, colour, facts
from fastft.report.page import render_page
from fastft.report.run_charts import EPOCHS
from fastft.report.run_figures import used_scores
from fastft.report.run_pairs import ImageResults, compare_image_results, read_image_results
from fastft.report.run_report import NOT_COMPARED, SUFFIXES
from fastft.report.run_times import run_cost, training_seconds
from fastft.run.evaluations import SCORE_NAMES, TOP1, WEIGHTS, BestBy, Scores
from fastft.run.find_weights import with_choice_so_far
from fastft.run.paired import Comparison
from fastft.run.run_directory import Run, load_run

PAGE = "comparison.html"


@dataclass(frozen=True)
class ComparedRun:
    """A run with the page's name for it, which tells it from the others, and the scores for its chosen weights.

    kind: "raw", "ema" or "probe". epoch, scores: None without an evaluation. A probe has no epoch.
    """

    name: str
    run: Run
    kind: str
    epoch: int | None
    scores: Scores | None
    images: ImageResults | None


@dataclass(frozen=True)
class ResultRow:
    """A run's result and time.

    Attributes:
        state: "" if the run has ended.
        error: the standard error of `score`, if that is top-1.
        paired: how far it is ahead of the first run. None for the first run.
        seconds, hours, money: so far. `hours` and `money` are for all devices together.
    """

    name: str
    folder: str
    state: str
    weights: str
    epoch: int | None
    score: float | None
    error: float | None
    samples: int
    paired: Comparison | None
    seconds: float | None
    hours: float | None
    money: float | None
    device: str


def load_compared(folders: Sequence[Path], opened: Sequence[BetonSet] = ()) -> list[ComparedRun]:
    """Load the runs. Raises UserError if a folder is not a run directory, or is given twice.

    opened: images that are open already. See `BetonSet.open`.
    """
    resolved = [Path(os.path.abspath(folder)) for folder in folders]  # noqa: PTH100 - links stay
    twice = next((folder for folder in resolved if resolved.count(folder) > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is given twice. Give each run once")
    runs = [with_choice_so_far(load_run(folder)) for folder in folders]
    return [_compared(name, run, opened) for name, run in zip(short_names(resolved), runs, strict=True)]


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return the ends of paths, just long enough to tell them apart."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _compared(name: str, run: Run, opened: Sequence[BetonSet]) -> ComparedRun:
    if not run.evaluations and (run.weights is None or run.baseline is None):
        return ComparedRun(name, run, "", None, None, read_image_results(run, opened))
    epoch, kind, scores = used_scores(run)
    return ComparedRun(name, run, kind, None if kind == PROBE else epoch, scores, read_image_results(run, opened))


def score_of(runs: Sequence[ComparedRun]) -> BestBy:
    """Return the score to compare: the one that chose the runs' weights if it is the same for all, otherwise top-1."""
    scores = {c.run.evaluations[-1].best_by for c in runs if c.run.evaluations}
    return scores.pop() if len(scores) == 1 else TOP1


def result_rows(runs: Sequence[ComparedRun], price: float | None = None) -> list[ResultRow]:
    """Return a row per run: its result, its difference from the first run on the same images, and its time."""
    rows, score = [], score_of(runs)
    for compared in runs:
        scores = compared.scores
        value = None if scores is None else getattr(scores, score)
        cost = run_cost(compared.run, price)
        spent = cost.so_far if cost else None
        rows.append(
            ResultRow(
                name=compared.name,
                folder=str(compared.run.folder),
                state="" if compared.run.finished else "not finished",
                weights="linear probe" if compared.kind == PROBE else WEIGHTS.get(compared.kind, ""),
                epoch=compared.epoch,
                score=value,
                error=scores.top1_error if scores is not None and value is not None and score == TOP1 else None,
                samples=0 if scores is None else scores.samples,
                paired=_paired(runs[0], compared),
                seconds=spent.wall_seconds if spent else None,
                hours=spent.hours if spent else None,
                money=spent.money if spent else None,
                device=f"{cost.devices} x {cost.device}" if cost else "",
            )
        )
    return rows


def _paired(first: ComparedRun, other: ComparedRun) -> Comparison | None:
    """Return the difference to the first run.

    It is None for that run itself, and if the images or predictions are not available.
    """
    if other is first or first.images is None or other.images is None:
        return None
    return compare_image_results(first.images, other.images)


def differing_options(runs: Sequence[ComparedRun]) -> list[Fact]:
    """Return the options that are not the same in all runs, with each run's value."""
    rows = facts([compared.run.recipe.flat() for compared in runs])
    return [row for row in rows if row.differs and row.name not in NOT_COMPARED]


def comparison_charts(runs: Sequence[ComparedRun]) -> list[Chart]:
    """Draw every run as a line: accuracy over epochs and over minutes, and both losses."""
    score = score_of(runs)
    title, unit = SCORE_NAMES[score].capitalize(), "% of validation images"
    last = max(compared.run.recipe.epochs for compared in runs)

    def evaluated(key: str, in_minutes: bool = False) -> list[Series]:
        series = []
        for k, compared in enumerate(runs):
            # for the weights that the run chose, otherwise for the EMA
            drawn = [(e, e.of(compared.kind) or e.headline[1]) for e in compared.run.evaluations]
            shown = [(e, value) for e, scores in drawn if (value := getattr(scores, key)) is not None]
            x = [_minutes(compared.run, e.step) if in_minutes else e.epoch + 1 for e, _ in shown]
            if shown:
                series.append(Series(compared.name, colour(k), x, [value for _, value in shown]))
        return series

    losses = [
        Series(
            compared.name, colour(k), [compared.run.epoch_of(i.step) for i in compared.run.intervals],
            [i.loss for i in compared.run.intervals],
        )
        for k, compared in enumerate(runs)
        if compared.run.intervals
    ]  # fmt: skip
    return [
        Chart(title, EPOCHS, unit, evaluated(score), "top", decimals=2, x_range=(0, last)),
        Chart(f"{title} over time", "minutes of training steps", unit, evaluated(score, True), "top", decimals=2),
        Chart("Validation loss", EPOCHS, "cross-entropy", evaluated("loss"), "bottom", x_range=(0, last)),
        Chart("Training loss", EPOCHS, "cross-entropy, augmented", losses, "bottom", x_range=(0, last)),
    ]


def _minutes(run: Run, step: float) -> float:
    """Return the minutes spent on training steps up to a step, without evaluations and start."""
    seconds = 0.0
    for interval, own in zip(run.intervals, training_seconds(run), strict=True):
        if interval.step > step:
            break
        seconds += own
    return seconds / 60


def write_comparison(runs: Sequence[ComparedRun], out: Path, price: float | None = None) -> Path:
    """Write the page that compares runs and return its path. price: price per device-hour."""
    check_writable(out, suffixes=SUFFIXES)
    rows = result_rows(runs, price)
    page = render_page(
        "run_compare.html",
        title=f"{len(runs)} runs compared",
        runs=runs,
        rows=rows,
        score=SCORE_NAMES[score_of(runs)],
        options=differing_options(runs),
        charts=[render_chart(chart) for chart in comparison_charts(runs)],
        price=price,
        devices=sorted({row.device for row in rows} - {""}),
    )
    with report_disk_errors(out, "Choose another --out"):
        write_text(out, page)
    return out
