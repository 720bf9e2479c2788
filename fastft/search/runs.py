"""The trainings of sweeps, and their results as Markdown and JSON.

Rows that train the same thing share a run directory, over all sweeps.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.console import Console

from beton_tools.base.atomic import write_text
from beton_tools.base.errors import UserError, report_disk_errors
from beton_tools.base.typed_json import Document, Number, check
from beton_tools.read.beton_paths import exist_betons
from beton_tools.read.beton_set import BetonSet
from fastft.machine.exits import LocalRankError, NonFinite, PeerFailed, Preempted
from fastft.machine.processes import World
from fastft.photos.counts import count_images
from fastft.recipe import Recipe, load_recipe
from fastft.recipe.tables import Row, Sweep
from fastft.run import run_directory
from fastft.run.continuation import RESUMABLE_OPTIONS
from fastft.run.evaluations import StoredEvaluation, standard_error
from fastft.train.train import train

# a run may be resumed with other values of these, but two rows that differ in them are two trainings: they change which
# epochs and weights are evaluated, and so the best one
COUNTED = {"schedule.stop_epoch", "train.stop_when", "train.eval_every", "train.eval_weights"}
Evaluation = dict[str, Any]  # epoch, raw {top1, samples, ...}, and with an EMA ema {...}
SPACE = "free some space, the same command continues"
WRITTEN = TABLE, DOCUMENT = "table.md", "results.json"


@dataclass(frozen=True)
class PlannedRun:
    """A training that some rows need; `recipe` has its run directory filled in."""

    key: str
    recipe: Recipe
    folder: Path


def plan_runs(sweep: Sweep, overrides: Sequence[str], runs: Path) -> list[PlannedRun]:
    """The run of every row, in order; equal rows get equal runs. `runs` is the folder of all run directories.

    Raises UserError: a recipe or override is wrong, or a row needs an EMA that its recipe does not keep, or weights that it
    does not evaluate.
    """
    taken = next((text for text in overrides if text.startswith("--train.run_dir")), None)
    if taken:
        raise UserError(f"{taken}: every training of a sweep has a folder of its own; use --out")
    return [_plan_run(_recipe(sweep, row, overrides), runs) for row in sweep.rows]


def _recipe(sweep: Sweep, row: Row, overrides: Sequence[str]) -> Recipe:
    recipe = load_recipe(sweep.reference(row), overrides)
    if recipe.automatic:  # other recipes keep the keys of earlier versions
        recipe = count_images(recipe)
    if row.number == "ema" and recipe.ema.decay == 0:
        raise UserError(f"{sweep.path}: row '{row.title}' needs an EMA, but ema.decay is 0; set number: raw")
    if row.number == "raw" and recipe.train.eval_weights == "ema":
        raise UserError(
            f"{sweep.path}: row '{row.title}' needs the raw weights, but train.eval_weights is ema; set it to both"
        )
    return recipe


def _plan_run(recipe: Recipe, runs: Path) -> PlannedRun:
    key = run_key(recipe)
    folder = runs / key
    return PlannedRun(key, recipe.with_option("train.run_dir", str(folder)), folder)


def run_key(recipe: Recipe) -> str:
    """A hash that is equal for recipes that train the same weights on the same images and evaluate after the same epochs."""
    values: Mapping[str, Any] = {
        key: value for key, value in recipe.identity().items() if key not in RESUMABLE_OPTIONS - COUNTED
    } | {"images": _content(recipe.data.train, recipe.data.train_size), "val_images": _content(recipe.data.val, 0)}
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=6).hexdigest()


@lru_cache
def _content(path: str | None, stated: int) -> int | str:
    """The checksum of the files, or their number of samples without manifests; `stated` if there is no file.

    Tells ImageNet from a part of it and from other images.
    """
    if not (path and exist_betons(path)):
        return stated
    content = BetonSet.open(path).content
    found: int | str = content.get("checksum", content["num_samples"])
    return found


def train_run(run: PlannedRun, world: World, console: Console) -> str | None:
    """Train or resume a run of several; returns the error that ended it, which is printed, or None.

    Raises:
        Preempted: stopped; the same call continues.
        UserError: an error of one process only, which must end all runs: the others would wait for it in the next one.
    """
    reported = (Exception,) if world.size == 1 else (UserError, NonFinite)
    try:
        train(run.recipe, console)
    except (Preempted, LocalRankError, PeerFailed):
        raise
    except reported as error:
        failure = " ".join(str(error).split()) or type(error).__name__
        console.print(f"failed: {failure}", style="red", highlight=False, markup=False)
        return failure
    return None


# results --------------------------------------------------------------------------------------------------------------


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
    ended = result["epochs"] >= run.recipe.epochs or result.get("stopped")
    return (ended and result["evaluations"]) or None


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
        found = [(e["epoch"], e[weights]) for e in self.evaluations if weights in e]
        return [Score(s["top1"], standard_error(s["top1"], s["samples"]), epoch) for epoch, s in found]


def write_results(folder: Path, title: str, parts: Sequence[str], document: Mapping[str, Any]) -> None:
    """Write the files, each atomically. parts: of the Markdown page, below its title.

    Raises UserError: the disk is full or fails.
    """
    with report_disk_errors(folder, SPACE):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / TABLE, "\n\n".join([f"# {title}", *parts]) + "\n")
        write_text(folder / DOCUMENT, json.dumps(document, indent=1) + "\n")
