"""The record of `fastft average` about an average, in its checkpoint and as `average.json`."""

from beton_tools.base.typed_json import Count, Document, Number
from fastft.run.evaluations import TOP1, BestBy


class FileFigures(Document, omit_defaults=True):
    """The accuracy of a model or an average on one file."""

    data: str
    samples: Count
    ranked_classes: Count
    best_by: BestBy = TOP1
    top1: Number | None = None
    standard_error: Number | None = None
    balanced_accuracy: Number | None = None
    map: Number | None = None

    @property
    def figure(self) -> float:
        """The score that compares models."""
        return float(getattr(self, self.best_by))


class AverageRow(Document):
    """A model, or an average over several. alpha: None in soups. files: the selection set first."""

    name: str
    alpha: Number | None
    files: list[FileFigures]

    @property
    def selection_figure(self) -> float:
        """The score on the selection set, or 0 without files."""
        return self.files[0].figure if self.files else 0.0


class AverageRecord(Document):
    """The models that were averaged, all evaluations, and the average that was kept.

    Attributes:
        method: "WiSE-FT", "greedy soup" or "uniform soup". `description` says it in one sentence.
        models, members: all models that were given, and those in the mean.
        data: the files that were evaluated, the selection set first.
        selection: the file that chose among several averages. None if there was nothing to choose.
        chosen, rows: None and empty if nothing was evaluated.
        note: why another average than the one with the best accuracy was kept, or "".
    """

    method: str
    description: str
    models: list[str]
    members: list[str]
    alpha: Number | None
    data: list[str]
    selection: str | None
    chosen: AverageRow | None
    rows: list[AverageRow]
    note: str = ""
