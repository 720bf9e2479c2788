"""`result.json` in a run directory: its evaluations, and which weights are used, with the evidence."""

from pathlib import Path
from typing import Literal

import msgspec

from beton_tools.base.typed_json import Count, Document, Number, Signed
from fastft.run.baseline import Baseline
from fastft.run.evaluations import BestBy, Evaluation
from fastft.run.json_files import read_document, write_document
from fastft.run.said import SaidWarning

RESULT = "result.json"


class Evidence(Document, omit_defaults=True):
    """Why raw or EMA was chosen: how many images were compared, how often only one is right, and the test's p-value.

    Attributes:
        balanced_gain: raw's gain over EMA in balanced accuracy, in points.
        balanced_error: this gain's standard error.
    """

    samples: Count
    raw_only: Count | None = None
    ema_only: Count | None = None
    balanced_gain: Signed | None = None
    balanced_error: Number | None = None
    p_value: Number | None = None


class Gain(Document):
    """The gain from fine-tuning over the linear probe, in points, with its standard error. note: set if it is not clear."""

    gain: Signed
    standard_error: Number
    note: str = ""


class WeightChoice(Document, omit_defaults=True):
    """The weights that predict, eval and export use, and the reason.

    Attributes:
        top1, balanced_accuracy, map: these weights' scores, as far as the run's evaluations have them.
        gain: gain over the linear probe, if the run starts from one.
        image_size: the image size if a linear probe at a larger size than in training was chosen, else None.
    """

    take: Literal["best", "last", "probe"]
    kind: Literal["raw", "ema", "probe"]
    epoch: Count
    reason: str
    top1: Number | None = None
    balanced_accuracy: Number | None = None
    map: Number | None = None
    evidence: Evidence | None = None
    gain: Gain | None = None
    image_size: Count | None = None

    @property
    def figures(self) -> dict[BestBy, float]:
        named: dict[BestBy, float | None] = {
            "top1": self.top1, "balanced_accuracy": self.balanced_accuracy, "map": self.map,
        }  # fmt: skip
        return {name: value for name, value in named.items() if value is not None}


class FirstRun(Document):
    """For a refit: the run on the training images alone, to which these results belong."""

    run: str
    weights: WeightChoice
    last: Evaluation | None
    baseline: Baseline | None


class Result(Document):
    """The content of result.json.

    Attributes:
        stopped: why training ended before its last epoch, else "".
        baseline: the linear probe that the run started from, and a larger one if it was compared with the trained model.
        best, last: the best and the last epoch's evaluations. They and `weights` are None without validation images.
        expectation, source: the expected accuracy in words, and its source.
        warnings: the log's warnings, in order.
    """

    recipe: str
    epochs: Count
    seconds: Number
    expectation: str
    stopped: str = ""
    baseline: Baseline | None = None
    best: Evaluation | None = None
    last: Evaluation | None = None
    weights: WeightChoice | None = None
    expected_top1: Number | None = None
    source: str | None = None
    evaluations: list[Evaluation] = msgspec.field(default_factory=list)
    first_run: FirstRun | None = None
    warnings: list[SaidWarning] = msgspec.field(default_factory=list)


def read_result(folder: Path) -> Result | None:
    """Read a run's result. Returns None if the run has not ended.

    Raises:
        UserError: the file cannot be read, or the trainer cannot have written it.
    """
    return read_document(folder / RESULT, Result, "delete it and run the same fastft train again")


def write_result(folder: Path, result: Result) -> None:
    write_document(folder / RESULT, result)
