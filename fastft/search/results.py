"""Results of sweeps and searches, and the files that say so: Markdown, JSON, and charts as SVG."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beton_tools.base.atomic import write_text
from beton_tools.base.errors import UserError
from beton_tools.base.typed_json import Document, Number, check
from fastft.recipe.tables import Row
from fastft.report.charts import Chart, render_file
from fastft.run import run_directory
from fastft.run.evaluations import StoredEvaluation, standard_error
from fastft.search.runs import PlannedRun

Evaluation = dict[str, Any]  # epoch, raw {top1, samples, ...}, and with an EMA ema {...}
WRITTEN = TABLE, DOCUMENT, PLOT = "table.md", "results.json", "plot.svg"


class _Result(Document):
    epochs: Number
    evaluations: list[StoredEvaluation]


def read_result(run: PlannedRun) -> list[Evaluation] | None:
    """Evaluations of a run that has trained all its epochs; None if it has not, or its result.json is damaged."""
    try:
        result = run_directory.read_result(run.folder)
        check("result.json", result, _Result)
    except (UserError, ValueError):
        return None
    return (result["epochs"] >= run.recipe.epochs and result["evaluations"]) or None


@dataclass(frozen=True)
class Score:
    """top1 in percent, its binomial standard error in points, and the epoch (0-based)."""

    top1: float
    standard_error: float
    epoch: int


@dataclass(frozen=True)
class Outcome:
    """A row with the evaluations of its finished run, or the error that ended it."""

    row: Row
    run: PlannedRun
    evaluations: Sequence[Evaluation] = ()
    error: str | None = None

    def best(self, weights: str) -> Score | None:
        """Best epoch of the "ema" or "raw" weights, chosen on the same images, as in the paper."""
        return max(self.curve(weights), key=lambda score: score.top1, default=None)

    def last(self, weights: str) -> Score | None:
        """Last epoch of the "ema" or "raw" weights."""
        return next(reversed(self.curve(weights)), None)

    @property
    def ours(self) -> Score | None:
        """The score that is compared with the paper's figure."""
        return self.best(self.row.number)

    @property
    def difference(self) -> float | None:
        """Our top-1 minus the paper's, in percentage points."""
        if self.ours is None or self.row.paper is None:
            return None
        return self.ours.top1 - self.row.paper

    def curve(self, weights: str) -> list[Score]:
        """One score per evaluated epoch."""
        found = [(e["epoch"], e[weights]) for e in self.evaluations if weights in e]
        return [Score(s["top1"], standard_error(s["top1"], s["samples"]), epoch) for epoch, s in found]


def write_results(
    folder: Path, title: str, parts: Sequence[str], document: Mapping[str, Any], charts: Sequence[Chart]
) -> None:
    """Write the three files, each atomically. parts: of the Markdown page, below its title.

    Raises:
        UserError: the disk is full or fails.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / TABLE, "\n\n".join([f"# {title}", *parts]) + "\n")
        write_text(folder / DOCUMENT, json.dumps(document, indent=1) + "\n")
        write_text(folder / PLOT, render_file(charts))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """One line for a disk that is full or fails."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); free some space, the same command continues"
        ) from None
