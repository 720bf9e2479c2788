"""The run directory: its lock, recipe.yaml and choices.json, and everything known about a run, also while it trains."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import IO

import yaml

from beton_tools.base.atomic import write_text
from beton_tools.base.errors import CORRECT, UserError, report_disk_errors
from beton_tools.base.typed_json import Document
from beton_tools.base.user_files import expand_home, open_own, try_lock
from fastft.recipe import Choice, FinalRecipe, Recipe, recipe_from_dict
from fastft.recipe.constants import FROM_WEIGHTS, PROBE
from fastft.recipe.training_images import is_imagenet
from fastft.recipe.yaml_file import read_yaml
from fastft.run.baseline import BASELINE, Baseline, read_baseline
from fastft.run.checkpoint import list_checkpoints, read_checkpoint, refuse_folder_of_runs
from fastft.run.identity import Identity, json_value
from fastft.run.json_files import read_document, write_document
from fastft.run.metrics_lines import LOG, BaselineLine, Interval, Log, LoggedEvaluation, Start, read_log
from fastft.run.result import WeightChoice, read_result
from fastft.run.said import WARNINGS, SaidWarning, read_warnings
from fastft.run.training_labels import TRAINING_LABELS

RECIPE, CHOICES, IDENTITY, LOCK = "recipe.yaml", "choices.json", "identity.json", ".lock"
PROBE_HEAD, HEAD_OF_WEIGHTS = "probe.safetensors", "head.safetensors"  # as `fastft zeroshot` writes heads
LARGER_HEAD = "larger_probe.safetensors"  # the head of the linear probe at a larger image size
START_HEADS = {PROBE: PROBE_HEAD, FROM_WEIGHTS: HEAD_OF_WEIGHTS}  # by `model.head_init`


@dataclass(frozen=True)
class Run:
    """A run directory as it is now.

    Attributes:
        log: the lines in metrics.jsonl.
        finished: training has ended.
        stopped: why it ended before its last epoch, else "".
        weights: the weights that predict, eval and export use. None without an evaluation, or before the run has ended.
        identity: what decides the run's numbers. None before the first step.
        warnings: the warnings in its log.
        larger: the linear probe at a larger image size, if the run compares one with its trained model.
    """

    folder: Path
    recipe: FinalRecipe
    log: Log
    finished: bool
    weights: WeightChoice | None = None
    stopped: str = ""
    identity: Identity | None = None
    warnings: Sequence[SaidWarning] = ()
    larger: Baseline | None = None

    @property
    def intervals(self) -> list[Interval]:
        return self.log.train

    @property
    def evaluations(self) -> list[LoggedEvaluation]:
        return self.log.eval

    @property
    def baseline(self) -> BaselineLine | None:
        """The linear probe that the run started from."""
        return self.log.baseline[-1] if self.log.baseline else None

    @property
    def machine(self) -> Start:
        """The last start. It has no content if the trainer logged none."""
        return self.log.start[-1] if self.log.start else Start()

    @property
    def on_gpu(self) -> bool:
        """False if the last start says that it runs on a CPU, whose peak, and so its MFU, is not known."""
        return self.machine.device_type != "cpu"

    @property
    def steps(self) -> int:
        """Optimiser steps done, as far as logged."""
        return int(self.intervals[-1].step) if self.intervals else 0

    @property
    def interval_steps(self) -> list[int]:
        """Optimiser steps in each interval."""
        return [int(b - a) for a, b in pairwise([0, *(i.step for i in self.intervals)])]

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch, from the log if there is one, because the run may train on another file than the recipe's."""
        if self.evaluations:
            last = self.evaluations[-1]
            return round(last.step / (last.epoch + 1))
        if not self.intervals:
            return self.recipe.steps_per_epoch()
        newest = self.intervals[-1]
        left = newest.seconds_left * newest.images_per_second / self.recipe.optim.batch_size
        return max(1, round((newest.step + left) / self.recipe.epochs))

    @property
    def total_steps(self) -> int:
        return self.recipe.epochs * self.steps_per_epoch

    @property
    def on_imagenet(self) -> bool:
        """True if the recipe is for ImageNet and the training file had ImageNet's number of images."""
        return is_imagenet(self.recipe) and self.steps_per_epoch == self.recipe.steps_per_epoch()

    def epoch_of(self, step: float) -> float:
        """Return a step's position in epochs (fractional), which is the horizontal axis of all curves."""
        return step / self.steps_per_epoch


def load_run(folder: Path) -> Run:
    """Read a run directory. Raises UserError if it is none, or if the trainer cannot have written its files."""
    path = folder / RECIPE
    if not path.exists():
        refuse_folder_of_runs(folder)
        raise UserError(f"{folder} is not a run directory (no recipe.yaml). Give the folder that fastft train wrote")
    stored = read_yaml(path, "the recipe.yaml that fastft train wrote")
    sections = {name: section for name, section in stored.items() if isinstance(section, dict)}
    if len(sections) < len(stored):
        raise UserError(f"{path} is not a recipe. Give the folder that fastft train wrote")
    result = read_result(folder)
    name = folder.name if result is None else result.recipe
    recipe, log, identity = recipe_from_dict(name, sections), read_log(folder / LOG), read_identity(folder)
    baseline = read_baseline(folder)
    run = Run(
        folder, recipe, log, finished=result is not None, identity=identity, warnings=read_warnings(folder),
        larger=None if baseline is None else baseline.larger,
    )  # fmt: skip
    return run if result is None else replace(run, weights=result.weights, stopped=result.stopped)


def write_identity(folder: Path, identity: Identity) -> None:
    fields = {name: getattr(identity, name) for name in Identity.__struct_fields__}
    write_document(folder / IDENTITY, Identity(**fields))


def read_identity(folder: Path) -> Identity | None:
    """Return what decides a run's numbers, or None before its first step.

    Runs made by fastft 0.3 have it only in their checkpoints. Raises UserError if the file cannot be read.
    """
    stored = read_document(folder / IDENTITY, Identity, "delete it and run the same command again")
    for path in [] if stored is not None else reversed(list_checkpoints(folder / "checkpoints")):
        with suppress(UserError):  # a damaged checkpoint
            return read_checkpoint(path, ()).state
    return stored


def run_folder(recipe: Recipe) -> Path:
    return expand_home(recipe.train.run_dir or f"runs/{recipe.name}")


def lock_run(folder: Path) -> IO[str]:
    """Open and lock a file.

    Its lock keeps other processes out of a run directory until it is closed or the process ends.

    Raises:
        UserError: another process holds the lock, the lock file is not a regular file, or the directory cannot be
            written.
    """
    with report_disk_errors(folder, "Give another --train.run_dir"):
        folder.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(open_own(folder / LOCK, os.O_WRONLY), "w")
    if not try_lock(file):
        file.close()
        raise UserError(f"{folder} is in use by another process. Wait for it, or use another --train.run_dir")
    return file


@contextmanager
def hold_run(folder: Path) -> Iterator[None]:
    """Make a run directory and keep other processes out of it.

    If bad input ends the context, a new directory is removed.

    Raises:
        UserError: as `lock_run`.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with lock_run(folder):
        try:
            yield
        except BaseException as error:
            quick = (
                {LOCK, WARNINGS, RECIPE, CHOICES} if isinstance(error, UserError) else {LOCK, WARNINGS}
            )  # these are written in no time
            if made and {path.name for path in folder.iterdir()} <= quick:
                shutil.rmtree(folder)
                for parent in made[1:]:
                    parent.rmdir()
            raise


def remove_heads(folder: Path) -> None:
    """Remove what an earlier start with other choices wrote between choosing and training: heads and the baseline.

    Raises UserError if a file cannot be removed.
    """
    for name in (*START_HEADS.values(), LARGER_HEAD, BASELINE, TRAINING_LABELS):
        with report_disk_errors(folder / name, CORRECT):
            (folder / name).unlink(missing_ok=True)


def write_recipe(folder: Path, recipe: FinalRecipe) -> None:
    text = f"# this run's resolved recipe ({recipe.name})\n" + yaml.safe_dump(
        json_value(recipe.as_dict()), sort_keys=False
    )
    write_text(folder / RECIPE, text)


class _Choices(Document):
    request: str  # `fastft.run.inputs.Inputs.request`
    choices: list[Choice]


def write_choices(folder: Path, choices: Sequence[Choice], request: str) -> None:
    """Write choices.json: the decided values, with their reasons and evidence. request: what the run is asked for."""
    write_document(folder / CHOICES, _Choices(request=request, choices=list(choices)))


def read_choices(folder: Path, request: str | None = None) -> dict[str, Choice] | None:
    """Return the choices in choices.json by option.

    None without the file, or if the run was asked for something else then.

    Raises:
        UserError: the file cannot be read.
    """
    stored = read_document(folder / CHOICES, _Choices, "delete it and run the same command again")
    if stored is None or request not in (None, stored.request):
        return None
    return {choice.option: choice for choice in stored.choices}
