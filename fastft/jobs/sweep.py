"""Train the rows of tables (`fastft sweep`), and report them in the paper's layout: terminal, Markdown, JSON.

Rows that train the same thing share a run directory, across all sweeps. If a run fails, this is reported and the others
continue.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from beton_tools.base.atomic import write_text
from beton_tools.base.console import compact_table, markdown_table, print_table
from beton_tools.base.errors import CORRECT, UserError, report_disk_errors
from beton_tools.read.beton_paths import exist_betons
from beton_tools.read.beton_set import BetonSet, Content
from beton_tools.read.class_list import Classes
from fastft.choose.automatic import resolve
from fastft.data.warnings import Warned
from fastft.jobs.decided import decide, load_decided
from fastft.jobs.grid import print_comparison
from fastft.jobs.run import run_stages
from fastft.machine.distributed import World, connected, find_world, is_gpu_failure
from fastft.machine.exits import LocalRankError, NonFinite, PeerFailed, Preempted
from fastft.model.recipe_model import check_model
from fastft.photos.paths import needs_preparation
from fastft.photos.prepare import prepare_overrides
from fastft.recipe import AskedRecipe, Recipe, load_recipe
from fastft.recipe.recipe_file import is_table, open_sweep
from fastft.recipe.tables import Row, Sweep
from fastft.recipe.training_images import largest_size
from fastft.run import result
from fastft.run.evaluations import TOP1, Evaluation
from fastft.run.identity import Difference, describe, identify_weights, make_identity
from fastft.run.inputs import Inputs, describe_arch, open_images, open_inputs, open_recipe_images, warn_of_images
from fastft.run.run_directory import read_choices, read_identity
from fastft.run.said import Say, collecting, line_printer

COLUMNS = ("paper", "ours", "diff", "best EMA", "last EMA", "best raw", "last raw")
NOTE = (
    "Top-1 in percent. 'Ours' is the best epoch of the EMA (of the raw model where the paper has no EMA), "
    "chosen on the validation images as in the paper. ± is the binomial standard error, @ the epoch from 0."
)
WRITTEN = TABLE, DOCUMENT = "table.md", "results.json"


def run_sweeps(sweeps: Sequence[Sweep], overrides: Sequence[str], out: Path, console: Console) -> list[Outcome]:
    """Train or resume every selected row. After every run, `out/<sweep>/` gets table.md and results.json.

    Run directories are `out/runs/<key>`. A named sweep has them at `out/<row>`, with its table beside them. Under
    torchrun every process calls this, and the main process writes the reports. Photographs are converted once, for all
    rows, into `out/data`.

    Raises:
        UserError: a sweep, recipe or override is wrong, two sweeps have one report, or there is no validation data.
        Preempted: stopped by a signal. The same call continues.
    """
    _refuse_one_report(sweeps, out)
    recipes = [load_recipe(sweep.reference(row), overrides) for sweep in sweeps for row in sweep.rows]
    largest = max(recipes, key=largest_size)  # photographs are stored large enough for this recipe
    options, converts, warned = recipes[0].train, needs_preparation(largest), list[Warned]()
    # one process group for all runs
    with connected(find_world(options.device, options.timeout_minutes, "train.device")) as world:
        console = console if world.is_main else Console(quiet=True)
        say = collecting(line_printer(console), warned)
        overrides = prepare_overrides(largest, overrides, out, say, world, _check)
        opened: dict[str, BetonSet] = {}  # all rows read the same files
        planned = [plan_runs(sweep, overrides, out / "runs", opened) for sweep in sweeps]
        runs = [run for row_runs in planned for run in row_runs]
        if any(run.recipe.data.val is None for run in runs):
            raise UserError("a sweep compares accuracies and needs validation data. Set --data.val=FILE.beton")
        # decided before the first run, so that all processes decide from the same files
        world.in_main(lambda: refuse_other_results(runs))
        _refuse_multi_label(runs[0].recipe)
        training = _Training(out, world, console, warned, waiting={run.key for run in runs if read_result(run) is None})
        if training.waiting and world.is_main and not converts:  # otherwise converting has warned
            _warn_of_images(runs, say)
        outcomes = []
        for sweep, own in zip(sweeps, planned, strict=True):
            training.train(sweep, own)
            finished = training.report(sweep, own)
            training.print(sweep, finished, list(opened.values()))
            outcomes += finished
    return outcomes


@dataclass
class _Training:
    """All sweeps' runs while they are trained.

    Attributes:
        waiting: keys of runs that have not been trained yet.
        failures: key -> the error that ended the run.
    """

    out: Path
    world: World
    console: Console
    warned: Sequence[Warned]
    waiting: set[str]
    failures: dict[str, str | None] = field(default_factory=dict)

    def train(self, sweep: Sweep, runs: Sequence[PlannedRun]) -> None:
        """Train the sweep's selected rows that are waiting, with a report after each.

        Args:
            runs: one for each row.
        """
        for number, (row, run) in enumerate(zip(sweep.rows, runs, strict=True), 1):
            if run.key in self.waiting and sweep.selected in (None, row):
                self.waiting.remove(run.key)
                self.console.rule(f"{sweep.name}, row {number} of {len(runs)}: {row.title}")
                self.failures[run.key] = train_run(run, self.world, self.console, self.warned)
                self.report(sweep, runs)

    def report(self, sweep: Sweep, runs: Sequence[PlannedRun]) -> list[Outcome]:
        """Return every row's outcome so far. The main process writes the sweep's report."""
        outcomes = [
            Outcome(row, run, read_result(run) or (), self.failures.get(run.key))
            for row, run in zip(sweep.rows, runs, strict=True)
        ]
        if self.world.is_main:
            write_report(sweep, outcomes, report_folder(sweep, self.out))
        return outcomes

    def print(self, sweep: Sweep, outcomes: Sequence[Outcome], opened: Sequence[BetonSet]) -> None:
        if not (sweep.named and self.world.is_main):
            print_report(sweep, outcomes, report_folder(sweep, self.out), self.console)
            return
        finished = [outcome.run.folder for outcome in outcomes if read_result(outcome.run) is not None]
        if len(finished) > 1:
            print_comparison(finished, opened, self.out, self.console)


def _warn_of_images(runs: Sequence[PlannedRun], say: Say) -> None:
    """Say what you should know about the images, once for all runs that read them."""
    pairs = {(run.recipe.data.train, run.recipe.data.val): run for run in runs}
    for run in pairs.values():
        if run.inputs is not None:
            for text in warn_of_images(run.recipe, run.inputs.train, run.inputs.val):
                say(text)


def _check(recipe: Recipe) -> None:
    """Check the recipe, once it has the numbers of images and classes, before photographs are converted."""
    _refuse_multi_label(recipe)
    check_model(recipe)


def _refuse_multi_label(recipe: Recipe) -> None:
    if recipe.data.multi_label:
        raise UserError(
            "fastft sweep compares runs on images with one label each, but these have several. Train each recipe with "
            "fastft train, and compare the runs with fastft report RUN RUN"
        )


def report_folder(sweep: Sweep, out: Path) -> Path:
    """Return the folder for the table, which lies beside the runs if they are named."""
    return out if sweep.named else out / sweep.name


def _refuse_one_report(sweeps: Sequence[Sweep], out: Path) -> None:
    """Raise UserError if two tables would write their reports into one folder, because one report would be lost."""
    first: dict[Path, Sweep] = {}
    for sweep in sweeps:
        other = first.setdefault(folder := report_folder(sweep, out), sweep)
        if not sweep.path.samefile(other.path):
            raise UserError(
                f"{other.path} and {sweep.path} both write {folder / TABLE}. Sweep one of them with another --out"
            )


# a row's run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlannedRun:
    """A run that one or more rows need.

    Attributes:
        key: identifies what is trained, and on which images.
        recipe: the recipe, with its run directory.
        number: the weights that the row compares, "ema" or "raw".
        inputs: None if the images do not exist.
        files: the opened files, which all rows share.
    """

    key: str
    recipe: AskedRecipe
    folder: Path
    number: str
    inputs: Inputs | None = None
    files: Mapping[str, BetonSet] = field(default_factory=dict)


def plan_runs(
    sweep: Sweep, overrides: Sequence[str], runs: Path, opened: dict[str, BetonSet] | None = None
) -> list[PlannedRun]:
    """Plan a run for every row, in order. Equal rows get equal runs.

    Args:
        runs: the folder that contains all run directories.
        opened: files that are open already. Files that this function opens are added.

    Raises:
        UserError: a recipe or override is wrong, or a row needs an EMA that its recipe does not keep, or weights that
            it does not evaluate.
    """
    taken = next((text for text in overrides if text.startswith("--train.run_dir")), None)
    if taken:
        raise UserError(f"{taken}: every run in a sweep has its own folder. Use --out")
    opened = {} if opened is None else opened
    return [_plan_run(sweep, row, overrides, runs, opened) for row in sweep.rows]


def _plan_run(sweep: Sweep, row: Row, overrides: Sequence[str], runs: Path, opened: dict[str, BetonSet]) -> PlannedRun:
    recipe, inputs = _with_inputs(load_recipe(sweep.reference(row), overrides), opened)
    number = row.number
    if number == "ema" and recipe.ema.decay == 0:
        if not sweep.named:
            raise UserError(f"{sweep.path}: row '{row.title}' needs an EMA, but ema.decay is 0. Set number: raw")
        number = "raw"  # a run that is too short for an EMA
    if number == "raw" and recipe.train.eval_weights == "ema":
        raise UserError(
            f"{sweep.path}: row '{row.title}' needs the raw weights, but train.eval_weights is ema. Set it to both"
        )
    key = run_key(recipe, inputs)
    folder = runs.parent / str(row.name) if sweep.named else runs / key
    return PlannedRun(key, recipe.with_option("train.run_dir", str(folder)), folder, number, inputs, opened)


def _with_inputs(recipe: AskedRecipe, opened: dict[str, BetonSet]) -> tuple[AskedRecipe, Inputs | None]:
    """Return (the recipe with what is decided before linear probes, its inputs if the images exist)."""
    data = [path for path in (recipe.data.train, recipe.data.val) if path is not None]
    if recipe.data.train is None or not all(map(exist_betons, data)):
        return decide(recipe)[0], None
    for path in data:
        if path not in opened:
            opened[path] = open_images(path, recipe.data.classes_by_position, list(opened.values()))
    recipe, inputs = open_inputs(recipe, files=open_recipe_images(recipe, opened))
    return resolve(recipe, inputs.images), inputs


def run_key(recipe: AskedRecipe, inputs: Inputs | None = None) -> str:
    """Hash what is trained, how long, on which images, and what is evaluated.

    If the images do not exist, their number stands for them.

    Args:
        inputs: the recipe's inputs, if they are open.
    """
    if inputs is None:
        _, inputs = _with_inputs(recipe, {})
    if inputs is not None:
        return inputs.identify(recipe).digest()
    images = Content(num_samples=recipe.data.train_size, files=[], identities=[])
    weights, head = identify_weights(recipe.model.weights, recipe.model.arch), identify_weights(recipe.model.head)
    return make_identity(recipe, describe_arch(recipe), Classes.unnamed(0), images, None, weights, head).digest()


def refuse_other_results(runs: Sequence[PlannedRun]) -> None:
    """Raise UserError, which names what differs, if a run directory holds another run than the planned one."""
    for run in runs:
        if run.inputs is None:
            continue
        if (stored := read_identity(run.folder)) is None:
            if read_result(run) is not None:  # made by fastft 0.3, and its checkpoints were removed
                raise UserError(
                    f"{run.folder} has a result, but nothing says what it was trained on. Use another --out"
                )
            continue
        choices = read_choices(run.folder) or {}  # what linear probes and rates chose then is used again
        now = run.inputs.identify(replace(resolve(run.recipe, run.inputs.images, choices), automatic=frozenset()))
        found = stored.differences(now)
        found += [Difference(o, f"{o}: set by hand -> auto") for o in sorted(run.recipe.automatic - choices.keys())]
        if found:
            raise UserError(f"{run.folder} holds another run: {describe(found)}. Use another --out")


def train_run(run: PlannedRun, world: World, console: Console, warned: Sequence[Warned] = ()) -> str | None:
    """Train or resume one of several runs. Prints and returns the error that ended it, or returns None.

    Raises:
        Preempted: stopped by a signal. The same call continues.
        UserError: an error in one process only. It must end all runs, because the others would wait for it in the next
            one.
    """
    reported = (Exception,) if world.size == 1 else (UserError, NonFinite)
    try:
        images = None if run.inputs is None else run.inputs.images
        run_stages(run.recipe, images, world, console, run.files, warned)
    except (Preempted, LocalRankError, PeerFailed):
        raise
    except reported as error:
        if is_gpu_failure(error):  # the other runs would meet it too
            raise
        failure = " ".join(str(error).split()) or type(error).__name__
        console.print(f"failed: {failure}", style="red", highlight=False, markup=False)
        return failure
    return None


# results --------------------------------------------------------------------------------------------------------------


def read_result(run: PlannedRun) -> list[Evaluation] | None:
    """Return the evaluations if a run has trained all its epochs. The list is empty if it stopped at its linear probe.

    Returns None if the run has not ended, or if a file is damaged.
    """
    try:
        found, recipe = result.read_result(run.folder), run.recipe
        if run.inputs is not None:
            recipe = resolve(recipe, run.inputs.images, read_choices(run.folder))
    except UserError:
        return None
    if found is None or not (found.epochs >= recipe.epochs or found.stopped):
        return None
    return found.evaluations if found.evaluations or recipe.epochs == 0 else None


@dataclass(frozen=True)
class Score:
    """Top-1 in percent, its binomial standard error in percentage points, and the epoch (0-based)."""

    top1: float
    standard_error: float
    epoch: int


@dataclass(frozen=True)
class Outcome:
    """A row with its finished run's evaluations, or with the error that ended the run."""

    row: Row
    run: PlannedRun
    evaluations: Sequence[Evaluation] = ()
    error: str | None = None

    def best(self, weights: str) -> Score | None:
        """The best epoch with the "ema" or "raw" weights, chosen on the same images, as in the paper."""
        return max(self.curve(weights), key=lambda score: score.top1, default=None)

    def last(self, weights: str) -> Score | None:
        return next(reversed(self.curve(weights)), None)

    @property
    def ours(self) -> Score | None:
        """The score that is compared with the paper's result."""
        return self.best(self.run.number)

    @property
    def difference(self) -> float | None:
        """Our top-1 minus the paper's, in percentage points."""
        if self.ours is None or self.row.paper is None:
            return None
        return self.ours.top1 - self.row.paper

    def curve(self, weights: str) -> list[Score]:
        evaluated = [(e.epoch, e.of(weights)) for e in self.evaluations]
        return [Score(s.value(TOP1), s.top1_error, epoch) for epoch, s in evaluated if s is not None]


# reports --------------------------------------------------------------------------------------------------------------


def write_report(sweep: Sweep, outcomes: Sequence[Outcome], folder: Path) -> None:
    """Write table.md (the paper's table, ours below it, then all results by row) and results.json, each atomically.

    Raises:
        UserError: the disk is full or fails.
    """
    title = f"{sweep.title} ({sweep.source})"
    details = [[o.row.title, *_cells(o), f"`{o.run.folder.name}`"] for o in outcomes]
    parts = [_grid(sweep, outcomes), NOTE, markdown_table(["row", *COLUMNS, "run"], details)]
    failed = [f"- {o.row.title}: {o.error}" for o in outcomes if o.error]
    if failed:
        parts.append("Failed:\n\n" + "\n".join(failed))
    document = {
        "name": sweep.name, "title": sweep.title, "source": sweep.source,
        "rows": [_json_row(sweep, o) for o in outcomes],
    }  # fmt: skip
    with report_disk_errors(folder, CORRECT):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / TABLE, "\n\n".join([f"# {title}", *parts]) + "\n")
        write_text(folder / DOCUMENT, json.dumps(document, indent=1) + "\n")


def print_report(sweep: Sweep, outcomes: Sequence[Outcome], folder: Path, console: Console) -> None:
    rows = ([outcome.row.title, *_cells(outcome)] for outcome in outcomes)
    print_table(compact_table(f"{sweep.title} ({sweep.source})", ["row", *COLUMNS], rows), console)
    for outcome in outcomes:
        if outcome.error:
            console.print(f"{outcome.row.title}: {outcome.error}", style="red", highlight=False, markup=False)
    console.print(f"written: {folder}/{', '.join(WRITTEN)}", highlight=False)


def _grid(sweep: Sweep, outcomes: Sequence[Outcome]) -> str:
    cells = {(o.row.series, o.row.label): o for o in outcomes}
    lines = []
    for series in sweep.series:
        row = [cells.get((series, label)) for label in sweep.labels]
        paper = ("" if o is None else as_published(o.row.paper) for o in row)
        lines.append([f"{series} paper".strip(), *paper])
        lines.append([f"{series} ours".strip(), *("" if o is None else _score(o.ours) for o in row)])
    return markdown_table(["", *sweep.labels], lines)


def _cells(outcome: Outcome) -> list[str]:
    difference = "-" if outcome.difference is None else f"{outcome.difference:+.2f}"
    cells = [as_published(outcome.row.paper), "failed" if outcome.error else _score(outcome.ours), difference]
    for weights in ("ema", "raw"):
        best, last = outcome.best(weights), outcome.last(weights)
        cells.append("-" if best is None else f"{best.top1:.2f} @{best.epoch}")
        cells.append("-" if last is None else f"{last.top1:.2f}")
    return cells


def as_published(top1: float | None) -> str:
    """Format a top-1 with one decimal, or with two if the paper gives two. "-" if the paper gives none."""
    if top1 is None:
        return "-"
    return f"{top1:.1f}" if round(top1, 1) == top1 else f"{top1:.2f}"


def _score(score: Score | None) -> str:
    return "-" if score is None else f"{score.top1:.2f}±{score.standard_error:.2f}"


def _json_row(sweep: Sweep, outcome: Outcome) -> dict[str, Any]:
    row = outcome.row
    scores = {"ours": outcome.ours}
    for weights in ("ema", "raw"):
        scores |= {f"best_{weights}": outcome.best(weights), f"last_{weights}": outcome.last(weights)}
    return {
        "label": row.label, "series": row.series, "recipe": sweep.reference(row), "run": str(outcome.run.folder),
        "number": row.number, "paper": row.paper, "difference": outcome.difference, "error": outcome.error,
        **{name: score and vars(score) for name, score in scores.items()},
    }  # fmt: skip


# cost -----------------------------------------------------------------------------------------------------------------


def read_trainings(references: Sequence[str], overrides: Sequence[str]) -> tuple[list[AskedRecipe], int]:
    """Read recipes and tables. Returns (the runs that they need, each once, how many recipes and rows there are).

    Raises:
        UserError: as `open_sweep` and `load_decided`.
    """
    rows: list[str] = []
    for reference in references:
        sweep = open_sweep(reference) if is_table(reference) else None
        rows += [reference] if sweep is None else [sweep.reference(row) for row in sweep.rows]
    trainings: dict[str, AskedRecipe] = {}
    for row in rows:
        recipe = load_decided(row, overrides)
        trainings.setdefault(run_key(recipe), recipe)
    return list(trainings.values()), len(rows)
