"""The run directory: its lock, recipe.yaml, choices.json, metrics.jsonl and result.json, written and read, also during a run."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Literal

import yaml

from beton_tools.base.atomic import write_text
from beton_tools.base.errors import UserError, report_disk_errors
from beton_tools.base.typed_json import UNSET, Document, Number, Numbers, Positive, Unset, check
from beton_tools.base.user_files import expand_home, open_own, read_user_file, read_user_text, try_lock
from fastft.recipe import Choice, Recipe, recipe_from_dict
from fastft.recipe.training_images import is_imagenet
from fastft.recipe.yaml_file import read_yaml
from fastft.run.evaluations import main_score

Line = dict[str, Any]
MAX_BYTES = 1 << 30  # of a file in a run directory; a long run logs some megabytes


class _Line(Document):
    step: Number


class _Interval(_Line):
    """Means over the steps since the previous line."""

    loss: Number
    lr: Number
    images_per_second: Positive  # over all processes; without the wait for a process's first batch
    wait_share: Number  # share of wall time spent waiting for data
    mfu: Number | None  # model FLOP/s over the device's peak; None if the peak is not known
    memory_gib: Number  # peak, of the device (GPU) or the process (CPU)
    seconds_left: Number
    split: Numbers | Unset = UNSET  # seconds of this process by part (train/timing.py), and its loader's in parallel
    grad_norm: Number | Unset | None = UNSET  # of the last step, before clipping; None: it overflowed in fp16


class _Evaluation(_Line):
    epoch: Number
    seconds: Number
    best_by: Literal["top1", "balanced_accuracy", "map"] | Unset = UNSET


class _Checkpoint(_Line):
    seconds: Number


class _Start(Document):
    world_size: Number | Unset = UNSET
    precision: str | Unset = UNSET
    seconds: Number | Unset = UNSET


class _Baseline(_Line):
    images: Number
    seconds: Number | Unset = UNSET


# the lines of metrics.jsonl by their kind; an evaluation also has scores, whose names begin with `raw_` or `ema_`
LINES: dict[str, type[Document]] = {
    "train": _Interval,
    "eval": _Evaluation,
    "checkpoint": _Checkpoint,
    "start": _Start,
    "baseline": _Baseline,
}


class _Weights(Document):
    """The entry of result.json that says what predict, eval and export take."""

    take: Literal["best", "last", "probe"]
    kind: Literal["raw", "ema", "probe"]
    reason: str


class _Result(Document):
    weights: _Weights | None = None
    stopped: str = ""  # why the training ended before its last epoch


RECIPE, CHOICES, LOCK = "recipe.yaml", "choices.json", ".lock"
SCORES = ("raw_", "ema_", "selection_")


@dataclass(frozen=True)
class Run:
    """The lines of metrics.jsonl by kind, in order of steps.

    starts: the hardware and software of each process start. intervals: loss, lr, images_per_second, wait_share, mfu,
    memory_gib, split. evaluations: raw_top1, ema_top1, ... checkpoints: seconds.
    """

    folder: Path
    recipe: Recipe
    starts: list[Line]
    intervals: list[Line]
    evaluations: list[Line]
    checkpoints: list[Line]
    finished: bool
    baseline: Line = field(default_factory=dict)  # of a head that starts from ridge regression; else empty
    weights: Line = field(default_factory=dict)  # what predict, eval and export take, of result.json
    stopped: str = ""  # why the training ended before its last epoch, of result.json

    @property
    def machine(self) -> Line:
        """The last start line; empty if the trainer wrote none."""
        return self.starts[-1] if self.starts else {}

    @property
    def on_gpu(self) -> bool:
        """False of a process that says so: the peak of a CPU, and so its MFU, is not known."""
        return bool(self.machine.get("device_type") != "cpu")

    @property
    def steps(self) -> int:
        """Optimiser steps done, as far as logged."""
        return int(self.intervals[-1]["step"]) if self.intervals else 0

    @property
    def interval_steps(self) -> list[int]:
        """Optimiser steps of each interval."""
        return [int(b - a) for a, b in pairwise([0, *(i["step"] for i in self.intervals)])]

    @property
    def steps_per_epoch(self) -> int:
        """From the log, because older versions stored the recipe's train_size, which may not be the file's."""
        if self.evaluations:
            last = self.evaluations[-1]
            return round(last["step"] / (last["epoch"] + 1))
        if not self.intervals:
            return self.recipe.steps_per_epoch()
        last = self.intervals[-1]
        left = last["seconds_left"] * last["images_per_second"] / self.recipe.optim.batch_size
        return max(1, round((last["step"] + left) / self.recipe.epochs))

    @property
    def total_steps(self) -> int:
        return self.recipe.epochs * self.steps_per_epoch

    @property
    def on_imagenet(self) -> bool:
        """True if the recipe is for ImageNet and the training file had as many images."""
        return is_imagenet(self.recipe) and self.steps_per_epoch == self.recipe.steps_per_epoch()

    def epoch_of(self, step: float) -> float:
        """A step's position in epochs, fractional: the horizontal axis of all curves."""
        return step / self.steps_per_epoch


def load_run(folder: Path) -> Run:
    """Read a run directory. Raises UserError: not a run directory, or its files are not as the trainer writes them."""
    path = folder / RECIPE
    if not path.exists():
        raise UserError(f"{folder} is not a run directory (no recipe.yaml); give the folder that fastft train wrote")
    stored = read_yaml(path, "the recipe.yaml that fastft train wrote")
    sections = {name: section for name, section in stored.items() if isinstance(section, dict)}
    if len(sections) < len(stored):
        raise UserError(f"{path} is not a recipe; give the folder that fastft train wrote")
    result = read_result(folder)
    recipe = with_moved_data(recipe_from_dict(str(result.get("recipe") or folder.name), sections), folder)
    lines = read_metrics(folder / "metrics.jsonl")
    by_kind = {kind: [line for line in lines if line.get("kind") == kind] for kind in LINES}
    try:
        _check_lines(by_kind)
    except ValueError as error:
        raise UserError(f"{folder / 'metrics.jsonl'}: {error}; was it written by fastft train?") from None
    return Run(
        folder=folder,
        recipe=recipe,
        starts=by_kind["start"],
        intervals=by_kind["train"],
        evaluations=by_kind["eval"],
        checkpoints=by_kind["checkpoint"],
        finished=bool(result),
        baseline=by_kind["baseline"][-1] if by_kind["baseline"] else {},
        weights=result.get("weights") or {},
        stopped=result.get("stopped", ""),
    )


def with_moved_data(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the images that were converted into the run directory where they are now: it may have been moved."""
    for name in ("train", "val"):
        stored = getattr(recipe.data, name)
        here = folder / "data" / Path(stored or "").name
        if stored and not os.path.lexists(stored) and here.is_file():
            recipe = recipe.with_option(f"data.{name}", str(here))
    return recipe


def read_metrics(path: Path) -> list[Line]:
    """The lines of a metrics.jsonl; lines cut short by a crash are left out.

    Raises UserError: the file cannot be read, or a line is not an object with a step.
    """
    if not path.exists():
        return []
    data = read_user_file(path, MAX_BYTES, "the metrics.jsonl that fastft train wrote")
    texts = data.decode("utf-8", "replace").splitlines()  # a crash may leave any bytes at the end
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        try:
            check("it", line, _Line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}; was it written by fastft train?") from None
        lines.append(line)
    return lines


def _check_lines(by_kind: dict[str, list[Line]]) -> None:
    """Raise ValueError for values that reports cannot draw."""
    for kind, lines in by_kind.items():
        for line in lines:
            check(f"a '{kind}' line", line, LINES[kind])
            check(f"a '{kind}' line", {key: line[key] for key in line if key.startswith(SCORES)}, Numbers)
            if kind == "eval":
                main = main_score(line)
                weights = "ema" if f"ema_{main}" in line and f"raw_{main}" not in line else "raw"
                for score in (main, "samples"):
                    if f"{weights}_{score}" not in line:
                        raise ValueError(f"an 'eval' line has no '{weights}_{score}'")
    if any(b["step"] <= a["step"] for a, b in pairwise(by_kind["train"])):
        raise ValueError("the steps of 'train' lines do not increase")
    if any(b["step"] < a["step"] for a, b in pairwise(by_kind["eval"])):
        raise ValueError("the steps of 'eval' lines decrease")


def read_json(path: Path, kind: Any, advice: str) -> Any:
    """The content of a JSON file in a run directory; {} if there is none.

    kind: its type, as `typed_json.check` takes it. advice: ends the message, such as "delete it and run again".
    Raises UserError: the file cannot be read, or has another type.
    """
    if not os.path.lexists(path):
        return {}
    try:
        document = json.loads(read_user_text(path, MAX_BYTES, f"the {path.name} of a run, or {advice}"))
        check(path.name, document, kind)
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; {advice}") from None
    return document


def read_result(folder: Path) -> dict[str, Any]:
    """The content of a run's result.json; empty if the run has not ended.

    Raises UserError: the file cannot be read, or is not as the trainer writes it.
    """
    advice = "delete it and run the same fastft train again"
    result: dict[str, Any] = read_json(folder / "result.json", _Result, advice)
    return result


def run_folder(recipe: Recipe) -> Path:
    return expand_home(recipe.train.run_dir or f"runs/{recipe.name}")


def lock_run(folder: Path) -> IO[str]:
    """An open file whose lock keeps other processes out of a run directory until it is closed or the process ends.

    Raises UserError: another process holds the lock, the lock file is not a regular file, or the directory cannot be written.
    """
    with report_disk_errors(folder, "give another --train.run_dir"):
        folder.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(open_own(folder / LOCK, os.O_WRONLY), "w")
    if not try_lock(file):
        file.close()
        raise UserError(f"{folder} is in use by another process; wait for it, or use another --train.run_dir")
    return file


@contextmanager
def hold_run(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run directory, which is made; if bad input ends the context, a new one goes again.

    Raises:
        UserError: as `lock_run`.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with lock_run(folder):
        try:
            yield
        except BaseException as error:
            quick = {LOCK, RECIPE, CHOICES} if isinstance(error, UserError) else {LOCK}  # written in no time
            if made and {path.name for path in folder.iterdir()} <= quick:
                shutil.rmtree(folder)
                for parent in made[1:]:
                    parent.rmdir()
            raise


def write_recipe(folder: Path, recipe: Recipe) -> None:
    sections = json.loads(json.dumps(recipe.as_dict()))  # tuples become lists
    text = f"# resolved recipe of this run ({recipe.name})\n" + yaml.safe_dump(sections, sort_keys=False)
    write_text(folder / RECIPE, text)


class _Choices(Document):
    request: str  # `fastft.run.continuation.request_key`
    choices: list[Choice]


def write_choices(folder: Path, choices: Sequence[Choice], request: str) -> None:
    """Write choices.json: the values that were decided, with their reasons and evidence. request: what the run is asked for."""
    content = {"request": request, "choices": [asdict(choice) for choice in choices]}
    write_text(folder / CHOICES, json.dumps(content, indent=1))


def read_choices(folder: Path, request: str | None = None) -> dict[str, Choice] | None:
    """The choices of choices.json by option; None without the file, or if the run was asked for something else then.

    Raises:
        UserError: the file cannot be read.
    """
    stored = read_json(folder / CHOICES, _Choices, "delete it and run the same command again")
    if not stored or request not in (None, stored["request"]):
        return None
    return {entry["option"]: Choice(**entry) for entry in stored["choices"]}


def write_result(folder: Path, result: dict[str, Any]) -> None:
    write_text(folder / "result.json", json.dumps(result, indent=1))
