"""Successive halving of complete short runs within a time budget, each in a run directory of its own; the same call continues."""

import dataclasses
import json
import math
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

from beton_tools.base.atomic import write_text
from beton_tools.base.console import format_duration
from beton_tools.base.errors import UserError, report_disk_errors
from beton_tools.base.typed_json import Document, Numbers
from beton_tools.read.beton_set import BetonSet
from fastft.data.classes import refuse_multi_label, refuse_other_classes
from fastft.model.recipe_model import recipe_arch
from fastft.optim.schedule import untrained_share
from fastft.photos.prepare import line_printer, prepare_data
from fastft.photos.same_images import count_shared
from fastft.recipe import Recipe, load_recipe
from fastft.recipe.training_images import NO_DATA, with_training_files
from fastft.run.chosen_weights import choose_weights
from fastft.run.evaluations import BALANCED_ACCURACY, TOP1
from fastft.run.prediction_metrics import read_validation
from fastft.run.run_directory import lock_run, read_json
from fastft.search.estimate import Result, ShortRun, measure, optimism
from fastft.search.runs import SPACE, Evaluation, PlannedRun, plan_run, read_result, train_run
from fastft.search.settings import (
    BUDGET_SHARES,
    DEFAULT,
    KEPT,
    Setting,
    count_epochs,
    grid,
    rung_epochs,
    shortened,
    with_setting,
)
from fastft.search.tune_report import print_result, write_report
from fastft.train.distributed import World, connected, find_world
from fastft.train.exceptions import TimeUp

SAVE_SECONDS = 15.0  # of a training, at most, are forgotten if the process is killed
OWN_OPTIONS = {"--train.run_dir": "--out", "--train.stop_after": "--budget"}


def tune(
    reference: str,
    overrides: Sequence[str],
    out: Path | None,
    *,
    budget: float = math.inf,
    test: Path | None = None,
    console: Console,
) -> Result:
    """Search the recipe's learning rates; writes `tuned.yaml`, `table.md` and `results.json` into `out`.

    budget: seconds, over all calls with this `out`. test: a file that is evaluated once the choice is made. Under torchrun
    every process calls this.

    Raises:
        UserError: bad input, a full disk, or the budget ended before the first training.
        Preempted: stopped by a signal; the same call continues.
    """
    recipe = _read(reference, overrides)
    folder = out or Path("runs") / f"tune-{recipe.name}"
    world = find_world(recipe.train.device, recipe.train.timeout_minutes, "train.device")
    with connected(world), ExitStack() as opened:

        def lock() -> None:
            opened.enter_context(lock_run(folder))

        recipe = _prepare(recipe, folder, test, console, world)
        shared = 0 if test is None else _count_shared(recipe, test, world)
        world.in_main(lock)
        search = _Search(recipe, folder, budget, world, console if world.is_main else Console(quiet=True))
        result = search.run(test, shared)
        if world.is_main:
            write_report(result, folder)
            print_result(result, folder, console)
    return result


def _read(reference: str, overrides: Sequence[str]) -> Recipe:
    for option, instead in OWN_OPTIONS.items():
        if any(text.startswith(f"{option}=") for text in overrides):
            raise UserError(f"{option} is set by fastft tune for every training; use {instead}")
    recipe = load_recipe(reference, overrides)
    if recipe.optim.lr == 0:
        raise UserError("optim.lr is 0, and tuning multiplies it; give a larger one")
    changing = next(iter(recipe.changing), None)
    if changing is not None:
        raise UserError(
            f"{changing} changes between epochs, which short runs cannot follow; tune with one value, then set the tuned lr and "
            "layer_decay in your recipe"
        )
    return recipe


def _prepare(recipe: Recipe, folder: Path, test: Path | None, console: Console, world: World) -> Recipe:
    """The recipe for its training and validation files. Photographs are converted once, into `folder`."""
    if test is not None:
        BetonSet.open(test)  # before anything is converted
    if recipe.data.train is None:
        raise UserError(NO_DATA)
    recipe = prepare_data(recipe.with_option("train.run_dir", str(folder)), line_printer(console), world)
    assert recipe.data.train is not None
    if recipe.data.val is None:
        raise UserError("tuning needs validation images; set --data.val, or --data.hold_out_beton=true")
    train = BetonSet.open(recipe.data.train)
    if test is not None:
        refuse_other_classes(BetonSet.open(test).class_names, train.class_names, test)
    recipe = with_training_files(recipe, train)
    refuse_multi_label(recipe, "fastft tune")
    return recipe


def _count_shared(recipe: Recipe, test: Path, world: World) -> int:
    """The images of `test` that are also training or validation images; the main process counts.

    Raises UserError: all of them are.
    """
    images, used = BetonSet.open(test), (str(recipe.data.train), str(recipe.data.val))
    shared = world.in_main(lambda: count_shared(images, list(map(BetonSet.open, used))))
    if shared == len(images):
        raise UserError(
            f"{test}: all its images are training or validation images, which choose the setting; give others, or leave "
            "--test out"
        )
    return shared


class _Spent(Document):
    seconds: Numbers


class Budget:
    """Seconds that each training has taken, in `tune.json`, and how much of the limit is left.

    limit: seconds; math.inf without a budget. keys: the trainings of this search; `tune.json` also keeps those of other searches
    in the same folder, such as one of other images, whose time is not counted. Clocks differ between processes: the main
    process decides for all.
    """

    def __init__(self, path: Path, limit: float, world: World, keys: Collection[str]):
        self.limit, self._path, self._world, self._keys = limit, path, world, keys
        stored = read_json(path, _Spent, "delete it, which forgets the time spent")
        self._seconds: dict[str, float] = stored.get("seconds", {})

    @property
    def spent(self) -> float:
        return sum(seconds for key, seconds in self._seconds.items() if key in self._keys)

    def left(self, share: float = 1.0) -> float:
        """Seconds that are left of a share of the limit, the same in all processes."""
        return self._world.broadcast(share * self.limit - self.spent)

    @contextmanager
    def timed(self, key: str) -> Iterator[None]:
        """Add the time of the block to the training `key`, also if it is interrupted."""
        began, before = time.monotonic(), self._seconds.get(key, 0.0)
        ended = threading.Event()

        def save() -> None:
            self._seconds[key] = before + time.monotonic() - began
            if self._world.is_main:
                write_text(self._path, json.dumps({"seconds": self._seconds}, indent=1))

        def save_repeatedly() -> None:
            while not ended.wait(SAVE_SECONDS):
                with suppress(OSError):  # such as a full disk: the end of the block says so
                    save()

        saver = threading.Thread(target=save_repeatedly, daemon=True)
        saver.start()
        try:
            yield
        finally:
            ended.set()
            saver.join()
            with report_disk_errors(self._path, SPACE):
                save()


@dataclass
class _Search:
    recipe: Recipe
    folder: Path
    limit: float
    world: World
    console: Console
    trials: list[ShortRun] = field(default_factory=list)
    skipped: list[tuple[Setting, int]] = field(default_factory=list)
    time_up: bool = False

    def __post_init__(self) -> None:
        self.layers = recipe_arch(self.recipe).layers
        self.rungs = rung_epochs(self.recipe)
        self.settings = grid(self.recipe, self.layers)
        keys = {self._plan(setting, epochs).key for setting in self.settings for epochs in self.rungs}
        self.budget = Budget(self.folder / "tune.json", self.limit, self.world, keys)

    def run(self, test: Path | None, shared: int) -> Result:
        settings = self.settings
        for rung, kept in enumerate((*KEPT, 0)):
            trials = [trial for s in settings if (trial := self._trial(s, rung)) is not None]
            # what the budget leaves no time for at this rung goes on to the next: the last one matters most
            settings = [trial.setting for trial in _ranked(trials)[:kept]] or settings[:kept]
        last = len(self.rungs) - 1
        if any(trial.rung == last and trial.setting != DEFAULT for trial in self.trials):
            self._trial(DEFAULT, last)  # what the tuned setting is compared with
        return self._result(test, shared)

    def _trial(self, setting: Setting, rung: int) -> ShortRun | None:
        """Train a setting unless it is trained already; None if it does not fit into the budget."""
        epochs, last = self.rungs[rung], len(self.rungs) - 1
        run = self._plan(setting, epochs)
        failure = None
        if (evaluations := self._read_result(run)) is None:
            if self.time_up or self.budget.left(BUDGET_SHARES[rung]) <= 0:
                self.skipped.append((setting, epochs))
                return None
            self._announce(setting, rung)
            try:
                with self.budget.timed(run.key):
                    failure = train_run(self._limited(run), self.world, self.console, UserError)
            except TimeUp:
                self.time_up = True
                self.skipped.append((setting, epochs))
                return None
            evaluations = self._read_result(run)
        if evaluations is None:
            trial = ShortRun(setting, rung, epochs, run, failure=failure)
        else:
            trial = _finished(setting, rung, epochs, run, evaluations)
            if epochs != self.rungs[last] and self.world.is_main:  # its figures are all that is needed
                shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
        self.trials.append(trial)
        return trial

    def _read_result(self, run: PlannedRun) -> list[Evaluation] | None:
        """The same in every process: the main one writes it after the others have finished."""
        return self.world.in_main(lambda: read_result(run))

    def _plan(self, setting: Setting, epochs: int) -> PlannedRun:
        return plan_run(shortened(with_setting(self.recipe, setting, self.layers), epochs), self.folder / "runs")

    def _limited(self, run: PlannedRun) -> PlannedRun:
        """The run, to be stopped when the budget ends, whatever was estimated."""
        left = self.budget.left()
        stop_after = None if math.isinf(left) else f"{max(left, 0.1):.1f}s"
        return dataclasses.replace(run, recipe=run.recipe.with_option("train.stop_after", stop_after))

    def _announce(self, setting: Setting, rung: int) -> None:
        text = f"rung {rung + 1} of {len(self.rungs)}, {count_epochs(self.rungs[rung])}: {setting.title}"
        if not math.isinf(self.limit):
            text += f"; {format_duration(self.budget.left())} left"
        self.console.rule(text)

    def _result(self, test: Path | None, shared: int) -> Result:
        last = len(self.rungs) - 1
        rung = max((trial.rung for trial in self.trials if trial.score is not None), default=None)
        if rung is None:
            failures = [trial.failure for trial in self.trials if trial.failure]
            reason = (
                f"every training failed, the first with: {failures[0]}" if failures
                else "the budget ended before the first training; the same command with a larger --budget continues"
            )  # fmt: skip
            raise UserError(reason)
        at_rung = [trial for trial in self.trials if trial.rung == rung]
        default = next((t for t in at_rung if t.setting == DEFAULT and t.score is not None), None)
        best, complete = _ranked(at_rung)[0], rung == last
        if rung == 0 and not complete:  # runs of an eighth of the length
            best = default or best
        figures, bias = None, None
        if complete and test is not None:
            folder = None if default is None else default.run.folder
            figures = measure(best.run.folder, folder, test, self.recipe.train.device, shared)
        else:
            bias = self._optimism()
        return Result(
            recipe=self.recipe, layers=self.layers, rungs=self.rungs, trials=self.trials, best=best,
            skipped=self.skipped, complete=complete, spent=self.budget.spent, figures=figures, optimism=bias, test=test,
        )  # fmt: skip

    def _optimism(self) -> float:
        scored = [trial for trial in self.trials if trial.score is not None]
        first = [trial for trial in scored if trial.rung == min(t.rung for t in scored)]
        saved = [read_validation(trial.run.folder, trial.weights) for trial in first]
        right_SN = np.stack([labels_N == predicted_N for labels_N, predicted_N in saved])
        labels_N = saved[0][0]
        balanced = first[0].measure == BALANCED_ACCURACY
        weights_N = 1 / np.bincount(labels_N)[labels_N] if balanced else np.ones(len(labels_N))
        return optimism(right_SN, weights_N)


def _finished(setting: Setting, rung: int, epochs: int, run: PlannedRun, evaluations: Sequence[Evaluation]) -> ShortRun:
    last = evaluations[-1]
    untrained = untrained_share(run.recipe, epochs * run.recipe.steps_per_epoch())
    chosen, measure = choose_weights(evaluations, last, untrained=untrained), last.get("best_by", TOP1)
    assert chosen is not None  # there is an evaluation
    weights = chosen["kind"]
    return ShortRun(setting, rung, epochs, run, float(last[weights][measure]), measure, weights)


def _ranked(trials: Sequence[ShortRun]) -> list[ShortRun]:
    """The finished trials, the best first; of equal ones the earlier."""
    finished = [trial for trial in trials if trial.score is not None]
    return sorted(finished, key=lambda trial: -(trial.score or 0.0))
