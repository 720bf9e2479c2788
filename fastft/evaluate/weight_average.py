"""WiSE-FT curves and model soups: what is evaluated on which files, which average is kept, and its folder.

WiSE-FT (2109.01903): alpha = 0 is a run's start, alpha = 1 its end. Soups (2203.05482): uniform is the mean over all
models. Greedy adds models by descending accuracy and keeps each one that does not make the mean worse. The accuracy on the
first file, the selection set, decides. Accuracy there is therefore not a result on unseen images.

On few images the best alpha is mostly the luckiest, and wrong labels add to this luck: with 50 validation images and 20 %
wrong labels, the best alpha lost 3.3 points on other images. So the largest alpha is kept unless another one is right on
significantly more images.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from msgspec import structs
from torch import Tensor

from beton_tools.base.atomic import check_writable, refuse_existing, scratch_folder
from beton_tools.base.errors import UserError, report_disk_errors
from beton_tools.read.beton_set import BetonSet
from fastft.data.classes import refuse_multi_label
from fastft.evaluate.evaluation import evaluate_model
from fastft.evaluate.file_report import EvaluatedFile
from fastft.evaluate.trained import Trained, load_trained
from fastft.machine.distributed import connected, find_world
from fastft.model.head_file import head_of_weights, set_head
from fastft.model.recipe_model import build_model
from fastft.recipe.constants import AUTO, FROM_WEIGHTS, GREEDY, PROBE, RAW
from fastft.run.average_record import AverageRecord, AverageRow, FileFigures
from fastft.run.checkpoint import State as CheckpointState
from fastft.run.checkpoint import write_checkpoint
from fastft.run.evaluations import BALANCED_ACCURACY, SCORE_NAMES
from fastft.run.find_weights import STEMS
from fastft.run.identity import describe, refuse_changed_weights
from fastft.run.json_files import write_document
from fastft.run.paired import SIGNIFICANT, Comparison, compare_predictions
from fastft.run.predictions import Predictions

State = dict[str, Tensor]
WISE = "WiSE-FT"
ALPHAS = tuple(round(0.1 * k, 1) for k in range(11))
RESULT = "average.json"
START = "start"  # given instead of a checkpoint: the initial weights in the next model's run
Say = Callable[[str], None]


class Ingredient(NamedTuple):
    """A model's name for tables, and its weights, fp32 on the CPU, which are read when they are needed."""

    name: str
    read: Callable[[], State]


def find_ingredients(models: Sequence[str], weights: str) -> tuple[Trained, list[Ingredient]]:
    """Return the last model, and all models. The average takes its recipe, classes and transform from the last one.

    models: run directories or checkpoints, or "start" before one of them. weights: as in `load_trained`.
    """
    if models[-1] == START:
        raise UserError(
            f"'{START}' must be followed by a run, whose initial weights it stands for. Give that run after it"
        )
    cpu = torch.device("cpu")
    last = load_trained(Path(models[-1]), cpu, weights)
    refuse_multi_label(last.recipe, "fastft average", "Use one of the runs")
    ingredients, labels = [], _labels(models)
    for position, name in enumerate(models):
        path = Path(models[position + 1] if name == START else name)
        model = load_trained(path, cpu, weights)
        _refuse_other(model, last, name)
        is_probe = model.recipe.model.head_init == PROBE  # the run directory keeps the probe's head
        # a run that chose a probe, perhaps one at another image size, started from it
        starts = PROBE if is_probe and name == START and model.kind != PROBE else weights
        read = partial(_read, path, starts)
        if name == START and not is_probe:
            read = partial(read_start, model)
        ingredients.append(Ingredient(labels[position], read))
    return last, ingredients


def _labels(models: Sequence[str]) -> list[str]:
    """Return short names for tables: the last parts of the paths, or whole paths if two short names are equal."""
    short = [Path(name).name for name in models]
    names = short if len(set(short)) == len(short) else list(models)
    return [f"start of {names[k + 1]}" if name == START else names[k] for k, name in enumerate(models)]


def _read(path: Path, weights: str) -> State:
    return load_trained(path, torch.device("cpu"), weights).model.state_dict()


def read_start(run: Trained) -> State:
    """Rebuild a run's initial weights from its recipe: the pretrained tower, with the run's head or a seeded one."""
    if run.state is not None:
        refuse_changed_weights(run.state, run.recipe, run.path)
    model = build_model(run.recipe, arch=run.model.visual.arch)
    if run.recipe.model.head_init == FROM_WEIGHTS:
        head, _ = head_of_weights(model, run.recipe, run.known_classes)
        set_head(model, head, run.path)
    return model.state_dict()


def _refuse_other(trained: Trained, expected: Trained, name: str) -> None:
    """Raise UserError if two models cannot be averaged."""
    models = trained.model, expected.model
    ours, theirs = ((m.visual.arch, m.pool, {k: v.shape for k, v in m.state_dict().items()}) for m in models)
    if ours != theirs:
        raise UserError(f"{name} has another architecture or head than {expected.path}. Average models from one recipe")
    same = trained.known_classes.rows_in(expected.known_classes) == list(range(len(expected.classes)))
    if not same or len(trained.outputs) != len(expected.outputs):
        raise UserError(f"{name} has other classes than {expected.path}. Average models with the same classes")
    if trained.state is not None and expected.state is not None:
        seen = expected.state.seen_differently(trained.state)
        if seen:
            raise UserError(
                f"{name} sees images differently than {expected.path}: {describe(seen)}. Average models from one recipe"
            )


def interpolate(start: State, end: State, alpha: float) -> State:
    """Return (1 - alpha) * start + alpha * end, which is exactly one of the two at 0 and 1."""
    return {name: torch.lerp(value, end[name], alpha) for name, value in start.items()}


def add_state(total: State, state: State) -> State:
    """Add in fp64, which does not drift. {} is the empty sum."""
    return {name: value.double() + total[name] if total else value.double() for name, value in state.items()}


def mean_state(total: State, count: int) -> State:
    return {name: (value / count).float() for name, value in total.items()}


# choosing an average ----------------------------------------------------------------------------------------------------


class Average(NamedTuple):
    """The average that is kept: its record, and its weights."""

    record: AverageRecord
    state: State

    @classmethod
    def of(
        cls,
        method: str,
        ingredients: Sequence[Ingredient],
        rows: Sequence[AverageRow],
        chosen: AverageRow,
        state: State,
        *,
        members: Sequence[str] = (),
        note: str = "",
    ) -> "Average":
        """Make an average. rows: everything that was evaluated. members: models in the mean, by default all."""
        names = [ingredient.name for ingredient in ingredients]
        inside = list(members) or names
        if chosen.alpha is None:
            made = f"{method} of {len(inside)} of {len(names)} models: {', '.join(inside)}"
        else:
            made = f"{WISE} average, {1 - chosen.alpha:g} x {names[0]} + {chosen.alpha:g} x {names[1]}"
        record = AverageRecord(
            method=method,
            description=made,
            models=names,
            members=inside,
            alpha=chosen.alpha,
            data=[],
            selection=None,
            chosen=chosen if chosen.files else None,
            rows=list(rows) if chosen.files else [],
            note=note,
        )
        return cls(record, state)

    def on(self, data: Sequence[Path], chooses: bool) -> "Average":
        """Add the files that were evaluated. chooses: the first one decided between several averages."""
        record = structs.replace(self.record, data=[str(path) for path in data])
        if chooses:
            assert record.chosen is not None
            score = SCORE_NAMES[record.chosen.files[0].best_by]
            chosen_by = f"{record.description}, chosen by {score} on {data[0].name}"
            record = structs.replace(record, selection=str(data[0]), description=chosen_by)
        return self._replace(record=record)


class Tried(NamedTuple):
    """An evaluated average. predictions: for the selection set, or None if there is no such set."""

    row: AverageRow
    predictions: Predictions | None

    def compare(self, other: "Tried") -> Comparison:
        """Compare two averages on the selection set, by the score that compares models."""
        assert self.predictions is not None and other.predictions is not None
        labels_N, file = self.predictions.labels_N, self.row.files[0]
        weighted = labels_N if file.best_by == BALANCED_ACCURACY else None
        paired = compare_predictions(self.predictions.right_N, other.predictions.right_N, weighted)
        return Comparison.of(paired, len(labels_N), SCORE_NAMES[file.best_by])


Evaluate = Callable[[str, State, float | None], Tried]  # (name, weights, alpha) to scores


def average(
    models: Sequence[str],
    data: Sequence[Path],
    device: str,
    *,
    alphas: Sequence[float] = ALPHAS,
    soup: str | None = None,
    only_present_classes: bool = False,
    weights: str = AUTO,
    say: Say,
) -> tuple[Trained, Average]:
    """Return the average, and the last model with the averaged weights.

    Args:
        models: run directories or checkpoints, or "start" for the initial weights in the run that follows it.
        data: `.beton` files, with the selection set first. If there are none and there is something to choose, the
            last model's validation file is used.
        alphas: WiSE-FT coefficients between two models. The largest is kept unless another is significantly better.
        soup: "greedy" or "uniform", instead of `alphas`.
        say: called with each row's results.
    """
    if len(models) < 2 or (soup is None and len(models) > 2):
        raise UserError("--alpha needs two models. Give two, or several with --soup greedy or --soup uniform")
    chooses = soup == GREEDY or (soup is None and len(alphas) > 1)
    trained, ingredients = find_ingredients(models, weights)
    by_position = trained.recipe.data.classes_by_position
    files = [BetonSet.open(path, classes_by_position=by_position) for path in data] or (
        [trained.open_validation()] if chooses else []
    )
    world = find_world(device)
    say = say if world.is_main else lambda text: None

    def evaluate(name: str, state: State, alpha: float | None = None) -> Tried:
        if not files:
            return Tried(AverageRow(name=name, alpha=alpha, files=[]), None)
        trained.model.load_state_dict(state)
        evaluated = [evaluate_model(trained, betons, world, only_present_classes) for betons in files]
        figures = [_figures(trained, of_file) for of_file in evaluated]
        say(f"{name}: " + ", ".join(f"{Path(f.data).name} {f.figure:.3f} %" for f in figures))
        return Tried(AverageRow(name=name, alpha=alpha, files=figures), evaluated[0].predictions)

    with connected(world):
        trained.model.to(world.device)
        if soup is None:
            averaged = _interpolate(evaluate, ingredients, sorted(set(alphas)))
        else:
            averaged = (_greedy if soup == GREEDY else _uniform)(evaluate, ingredients)
        trained.model.load_state_dict(averaged.state)
    paths = [Path(betons.title) for betons in files]
    return trained, averaged.on(paths, chooses)


def _figures(trained: Trained, evaluated: EvaluatedFile) -> FileFigures:
    s = evaluated.scores
    return FileFigures(
        data=str(evaluated.path), samples=s.samples, ranked_classes=evaluated.ranked_classes, best_by=trained.main_score,
        top1=s.top1, standard_error=None if s.top1 is None else s.top1_error, balanced_accuracy=s.balanced_accuracy, map=s.map,
    )  # fmt: skip


def _interpolate(evaluate: Evaluate, ingredients: Sequence[Ingredient], alphas: Sequence[float]) -> Average:
    start, end = (ingredient.read() for ingredient in ingredients)
    tried = [evaluate(f"alpha {a:g}", interpolate(start, end, a), a) for a in alphas]
    chosen, note = choose_alpha(tried)
    state = interpolate(start, end, chosen.alpha or 0.0)
    return Average.of(WISE, ingredients, [one.row for one in tried], chosen, state, note=note)


def choose_alpha(tried: Sequence[Tried]) -> tuple[AverageRow, str]:
    """Return (the row to keep, why it is not the most accurate row, or "").

    The last row is kept unless others are right on significantly more images (`SIGNIFICANT`). Then the best of these is kept.
    """
    last = tried[-1]
    if last.predictions is None:
        return last.row, ""
    leads = [(one, one.compare(last)) for one in tried[:-1]]
    better = [one for one, lead in leads if lead.gain > 0 and lead.p_value < SIGNIFICANT]
    if better:
        return max(better, key=lambda one: one.row.selection_figure).row, ""
    best, lead = max(leads, key=lambda pair: pair[1].gain, default=(last, None))
    if lead is None or lead.gain <= 0:
        return last.row, ""
    images = len(last.predictions.labels_N)
    return last.row, (
        f"{best.row.name} is {lead.gain:.1f} ± {lead.error:.1f} points better on {images:,} images, which can be chance, so "
        f"{last.row.name} is kept. --alpha {best.row.alpha:g} takes the other one"
    )


def _uniform(evaluate: Evaluate, ingredients: Sequence[Ingredient]) -> Average:
    total: State = {}
    rows = []
    for name, read in ingredients:
        state = read()
        total = add_state(total, state)
        rows.append(evaluate(name, state, None).row)
    state = mean_state(total, len(ingredients))
    chosen = evaluate("uniform soup", state, None).row
    return Average.of("uniform soup", ingredients, [*rows, chosen], chosen, state)


def _greedy(evaluate: Evaluate, ingredients: Sequence[Ingredient]) -> Average:
    alone = [(evaluate(one.name, one.read(), None).row, one) for one in ingredients]
    ranked = sorted(alone, key=lambda pair: -pair[0].selection_figure)
    best, first = ranked[0]
    total, members = add_state({}, first.read()), [first.name]
    rows = [row for row, _ in alone]
    for _, (name, read) in ranked[1:]:
        tried = add_state(total, read())
        row = evaluate(f"soup with {name}", mean_state(tried, len(members) + 1), None).row
        rows.append(row)
        if row.selection_figure >= best.selection_figure:
            total, best = tried, row
            members.append(name)
    return Average.of("greedy soup", ingredients, rows, best, mean_state(total, len(members)), members=members)


def check_out(out: Path, overwrite: bool = False) -> None:
    """Raise UserError if the average cannot be written to the folder `out`. overwrite: replace an earlier average."""
    refuse_existing(out, overwrite)
    if os.path.lexists(out) and (out.is_symlink() or not (out / RESULT).is_file()):
        raise UserError(f"{out} was not written by fastft average, so it is not replaced. Give another --out")
    if not out.exists():
        check_writable(out, makes_directories=True)


def write_average(average: Average, trained: Trained, out: Path) -> None:
    """Write the folder with a checkpoint and `average.json`. It appears, or replaces another, only when it is complete."""
    assert trained.state is not None, "only checkpoints are averaged"
    state = CheckpointState.of(trained.state, average=average.record)
    with report_disk_errors(out, "Nothing was kept"), scratch_folder(out) as parent:
        folder = parent / out.name
        write_checkpoint(folder, state, {STEMS[RAW]: average.state})
        write_document(folder / RESULT, average.record)
        if out.exists():
            out.rename(parent / "replaced")  # deleted with the scratch folder
        folder.rename(out)
