"""`fastft report RUN RUN ...`: one page to compare runs: accuracy with paired differences, options, time, curves."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from beton_tools.base.atomic import check_writable, write_text
from beton_tools.base.errors import UserError, report_disk_errors
from beton_tools.read.beton_set import BetonSet
from fastft.recipe.constants import PROBE
from fastft.report.charts import Chart, Series, render_chart
from fastft.report.page import Fact, colour, facts, render_page
from fastft.report.run_charts import EPOCHS
from fastft.report.run_figures import used_scores
from fastft.report.run_pairs import ImageResults, compare_image_results, read_image_results
from fastft.report.run_report import NOT_COMPARED, SUFFIXES
from fastft.report.run_times import RunCost, run_cost, training_seconds
from fastft.run.evaluations import SCORE_NAMES, TOP1, WEIGHTS, BestBy, Scores
from fastft.run.find_weights import with_choice_so_far
from fastft.run.paired import Comparison
from fastft.run.run_directory import Run, load_run

PAGE = "comparison.html"


class ComparedRun(NamedTuple):
    """A run with the page's name for it, which tells it from the others, and the scores for its chosen weights.

    kind: "raw", "ema", "probe", or "" without an evaluation. epoch, scores: None without one. A probe has no epoch.
    """

    name: str
    run: Run
    kind: str
    epoch: int | None
    scores: Scores | None
    images: ImageResults | None


class ResultRow(NamedTuple):
    """A run's result and time.

    Attributes:
        weights: "linear probe", "raw", "EMA", or "" without an evaluation.
        error: the standard error of `score`, if that is top-1.
        paired: how far it is ahead of the first run. None for the first run, or if images or predictions are not there.
        cost: None if nothing is logged yet.
    """

    compared: ComparedRun
    weights: str
    score: float | None
    error: float | None
    paired: Comparison | None
    cost: RunCost | None


def load_compared(folders: Sequence[Path], opened: Sequence[BetonSet] = ()) -> list[ComparedRun]:
    """Load the runs. Raises UserError if a folder is not a run directory, or is given twice.

    opened: images that are open already. See `BetonSet.open`.
    """
    resolved = [Path(os.path.abspath(folder)) for folder in folders]  # noqa: PTH100 - links stay
    twice = next((folder for folder in resolved if resolved.count(folder) > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is given twice. Give each run once")
    runs = [with_choice_so_far(load_run(folder)) for folder in folders]
    compared = []
    for name, run in zip(short_names(resolved), runs, strict=True):
        epoch, kind, scores = None, "", None
        if run.evaluations or (run.weights is not None and run.baseline is not None):
            epoch, kind, scores = used_scores(run)
        epoch = None if kind == PROBE else epoch
        compared.append(ComparedRun(name, run, kind, epoch, scores, read_image_results(run, opened)))
    return compared


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return the ends of paths, just long enough to tell them apart."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def score_of(runs: Sequence[ComparedRun]) -> BestBy:
    """Return the score to compare: the one that chose the runs' weights if it is the same for all, otherwise top-1."""
    scores = {c.run.evaluations[-1].best_by for c in runs if c.run.evaluations}
    return scores.pop() if len(scores) == 1 else TOP1


def result_rows(runs: Sequence[ComparedRun], price: float | None = None) -> list[ResultRow]:
    """Return a row per run: its result, its difference from the first run on the same images, and its time."""
    rows, score, first = [], score_of(runs), runs[0].images
    for compared in runs:
        scores, images = compared.scores, compared.images
        value = None if scores is None else getattr(scores, score)
        weights = "linear probe" if compared.kind == PROBE else WEIGHTS.get(compared.kind, "")
        error = scores.top1_error if scores is not None and value is not None and score == TOP1 else None
        paired = None
        if compared is not runs[0] and first is not None and images is not None:
            paired = compare_image_results(first, images)
        rows.append(ResultRow(compared, weights, value, error, paired, run_cost(compared.run, price)))
    return rows


def differing_options(runs: Sequence[ComparedRun]) -> list[Fact]:
    """Return the options that are not the same in all runs, with each run's value."""
    rows = facts([compared.run.recipe.flat() for compared in runs])
    return [row for row in rows if row.differs and row.name not in NOT_COMPARED]


def comparison_charts(runs: Sequence[ComparedRun]) -> list[Chart]:
    """Draw every run as a line: accuracy over epochs and over minutes, and both losses."""
    score = score_of(runs)
    title, unit = SCORE_NAMES[score].capitalize(), "% of validation images"
    last = max(compared.run.recipe.epochs for compared in runs)

    def lines(points: Callable[[ComparedRun], Iterable[tuple[float, float]]]) -> list[Series]:
        return [Series.of(compared.name, colour(k), points(compared)) for k, compared in enumerate(runs)]

    def evaluated(key: str, in_minutes: bool = False) -> list[Series]:
        def points(compared: ComparedRun) -> Iterator[tuple[float, float]]:
            for e in compared.run.evaluations:
                scores = e.of(compared.kind) or e.headline[1]  # the weights that the run chose, otherwise the EMA
                if (value := getattr(scores, key)) is not None:
                    yield _minutes(compared.run, e.step) if in_minutes else e.epoch + 1, value

        return lines(points)

    losses = lines(lambda compared: [(compared.run.epoch_of(i.step), i.loss) for i in compared.run.intervals])
    return [
        Chart(title, EPOCHS, unit, evaluated(score), "top", decimals=2, x_range=(0, last)),
        Chart(f"{title} over time", "minutes of training steps", unit, evaluated(score, True), "top", decimals=2),
        Chart("Validation loss", EPOCHS, "cross-entropy", evaluated("loss"), "bottom", x_range=(0, last)),
        Chart("Training loss", EPOCHS, "cross-entropy, augmented", losses, "bottom", x_range=(0, last)),
    ]


def _minutes(run: Run, step: float) -> float:
    """Return the minutes spent on training steps up to a step, without evaluations and start."""
    seconds = zip(run.intervals, training_seconds(run), strict=True)
    return sum(own for interval, own in seconds if interval.step <= step) / 60


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
        devices=sorted({f"{row.cost.devices} x {row.cost.device}" for row in rows if row.cost}),
    )
    with report_disk_errors(out, "Choose another --out"):
        write_text(out, page)
    return out
