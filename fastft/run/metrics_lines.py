"""The lines in `metrics.jsonl`, by kind. Each class defines a line's type, format and validation."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import msgspec

from beton_tools.base.errors import UserError
from beton_tools.base.typed_json import Count, Document, Number, Numbers, Positive, check
from beton_tools.base.user_files import read_user_file
from fastft.run.evaluations import ByWeights, Evaluation, Scores, unflatten
from fastft.run.json_files import MAX_RUN_FILE_BYTES

LOG = "metrics.jsonl"
RawLine = Mapping[str, object]


class Line(Document):
    step: Number


class Interval(Line):
    """Means over the steps since the previous line.

    Attributes:
        images_per_second: over all processes, without the wait for a process's first batch.
        wait_share: fraction of wall time spent waiting for data.
        mfu: model FLOP/s over the GPU's peak. None on a CPU, or if the peak is not known.
        memory_gib: the peak memory that the GPU, or on a CPU the process, used.
        split: this process's seconds by part (train/timing.py), and its loader's in parallel.
        grad_norm: the last step's norm, before clipping. None if it overflowed in fp16.
    """

    epoch: Count
    loss: Number
    lr: Number
    images_per_second: Positive
    wait_share: Number
    mfu: Number | None
    memory_gib: Number
    seconds_left: Number
    split: Numbers = msgspec.field(default_factory=dict)
    grad_norm: Number | None = None


class LoggedEvaluation(Evaluation, kw_only=True, omit_defaults=True):
    """An evaluation, its duration, and the step after which it was made."""

    step: Number
    seconds: Number


class CheckpointLine(Line):
    seconds: Number


class Start(Document, omit_defaults=True):
    """A process's start: its hardware and software, and the seconds that its set-up took."""

    device: str = ""
    device_type: str = ""
    world_size: Count = 1
    cores: Count | None = None
    torch_threads: Count | None = None
    precision: str = ""
    fastft: str = ""
    torch: str = ""
    seconds: Number = 0.0


class BaselineLine(Line):
    """The linear probe that the run starts from, with the same fields as `fastft.run.baseline.Baseline`."""

    images: Count
    penalty: Number = 0.0
    scale: Number = 0.0
    seconds: Number = 0.0
    raw: Scores | None = None
    selection: ByWeights | None = None


@dataclass(frozen=True)
class Log:
    """A run's lines by kind, ordered by step."""

    start: list[Start]
    train: list[Interval]
    eval: list[LoggedEvaluation]
    checkpoint: list[CheckpointLine]
    baseline: list[BaselineLine]


T = TypeVar("T", bound=Document)


def read_log(path: Path) -> Log:
    """Read a metrics.jsonl. Raises UserError if it cannot be read, or if the trainer cannot have written a line."""
    lines = [unflatten(line) for line in read_lines(path)]

    def of(kind: str, type_: type[T]) -> list[T]:
        return [check(f"a '{kind}' line", line, type_) for line in lines if line.get("kind") == kind]

    try:
        log = Log(
            of("start", Start), of("train", Interval), of("eval", LoggedEvaluation), of("checkpoint", CheckpointLine),
            of("baseline", BaselineLine),
        )  # fmt: skip
        if any(b.step <= a.step for a, b in pairwise(log.train)):
            raise ValueError("the steps in 'train' lines do not increase")
        if any(b.step < a.step for a, b in pairwise(log.eval)):
            raise ValueError("the steps in 'eval' lines decrease")
    except ValueError as error:
        raise UserError(f"{path}: {error}. Was it written by fastft train?") from None
    return log


def read_lines(path: Path) -> list[RawLine]:
    """Read the lines in a metrics.jsonl. Lines cut short by a crash are left out.

    Raises:
        UserError: the file cannot be read, or a line is not an object with a step.
    """
    if not path.exists():
        return []
    data = read_user_file(path, MAX_RUN_FILE_BYTES, f"the {LOG} that fastft train wrote")
    texts = data.decode("utf-8", "replace").splitlines()  # a crash may leave any bytes at the end
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        try:
            check("it", line, Line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}. Was it written by fastft train?") from None
        lines.append(line)
    return lines
