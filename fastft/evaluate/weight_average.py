"""WiSE-FT curves and model soups: what is evaluated on which files, and which average is kept.

WiSE-FT (2109.01903): alpha = 0 is the start of a run, 1 its end. Soups (2203.05482): uniform is the mean of all models; greedy
adds models in the order of their accuracy, each if the mean does not become worse. The average that is kept has the best
top-1 of the first file, the selection set: its figure there is not one of unseen images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from beton_tools.base.errors import UserError
from fastft.evaluate.evaluation import FileScores, evaluate_model, evaluating
from fastft.evaluate.ingredients import (
    Ingredient,
    RunningMean,
    State,
    count_training_images,
    find_ingredients,
    interpolate,
)
from fastft.evaluate.trained import Trained
from fastft.recipe.constants import AUTO, GREEDY
from fastft.train.distributed import World, find_world

WISE = "WiSE-FT"
ALPHAS = tuple(round(0.1 * k, 1) for k in range(11))
Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """A model or an average with its scores on each file. alpha: None in soups."""

    name: str
    scores: list[FileScores]
    alpha: float | None = None

    @property
    def top1(self) -> float:
        """On the selection set."""
        return self.scores[0].scores.top1


@dataclass(frozen=True)
class Average:
    """The kept average.

    method: "WiSE-FT", "greedy soup" or "uniform soup". data: the files that were evaluated, the selection set first.
    selection: the file that chose among several averages; None if there was nothing to choose. members: models of the mean.
    chosen: its row; None without `data`. shared: images of the selection set that are training images, by model.
    """

    method: str
    models: list[str]
    members: list[str]
    data: list[Path]
    selection: Path | None
    rows: list[Row]
    chosen: Row | None
    alpha: float | None
    state: State = field(repr=False)
    shared: dict[str, int] = field(default_factory=dict)

    def describe(self) -> str:
        """In one sentence, for the checkpoint and its model card."""
        if self.alpha is not None:
            made = f"{WISE} average of {self.models[0]} and {self.models[1]} at alpha {self.alpha:g}"
        else:
            made = f"{self.method} of {len(self.members)} of {len(self.models)} models: {', '.join(self.members)}"
        if self.selection is not None:
            made += f"; chosen by top-1 on {self.selection.name}"
        return f"{made}; {self.overlap()}" if self.shared else made

    def overlap(self) -> str:
        """How many images of the selection set each model was trained on, as text. `shared` must not be empty."""
        assert self.chosen is not None and self.shared
        images = self.chosen.scores[0].scores.samples
        shared = self.shared.items()
        return " and ".join(
            f"{n:,} of its {images:,} images are training images of {name}" for name, n in shared
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything but the weights, as JSON values."""
        return {
            "method": self.method, "description": self.describe(), "models": self.models, "members": self.members,
            "alpha": self.alpha, "data": [str(path) for path in self.data],
            "selection": None if self.selection is None else str(self.selection),
            "shared": self.shared,
            "chosen": None if self.chosen is None else _row(self.chosen), "rows": [_row(row) for row in self.rows],
        }  # fmt: skip


def _row(row: Row) -> dict[str, Any]:
    files = [
        {
            "data": str(s.path), "top1": s.scores.top1, "standard_error": s.scores.standard_error,
            "samples": s.scores.samples, "ranked_classes": s.ranked_classes,
        }
        for s in row.scores
    ]  # fmt: skip
    return {"name": row.name, "alpha": row.alpha, "files": files}


@dataclass
class _Evaluator:
    """Evaluates weights in one model on the device."""

    trained: Trained
    data: list[Path]
    world: World
    only_present_classes: bool
    say: Say

    def row(self, name: str, state: State, alpha: float | None = None) -> Row:
        self.trained.model.load_state_dict(state)
        scores = [
            evaluate_model(self.trained, path, self.world, self.only_present_classes) for path in self.data
        ]
        row = Row(name, scores, alpha)
        if scores:
            self.say(f"{name}: " + ", ".join(f"{s.path.name} {s.scores.top1:.3f} %" for s in scores))
        return row

    def average(
        self,
        method: str,
        ingredients: Sequence[Ingredient],
        members: list[str],
        rows: list[Row],
        chosen: Row,
        state: State,
        selects: bool,
    ) -> Average:
        return Average(
            method=method,
            models=[ingredient.name for ingredient in ingredients],
            members=members,
            data=self.data,
            selection=self.data[0] if selects and self.data else None,
            rows=rows if self.data else [],
            chosen=chosen if self.data else None,
            alpha=chosen.alpha,
            state=state,
        )


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
    """The average, and the last model with its weights.

    Args:
        models: run directories or checkpoints; "start" for what the run after it started from.
        data: `.beton` files, the selection set first; none: the validation file of the last model's recipe, if there is
            something to choose.
        alphas: of WiSE-FT, between two models; of equally good ones the smallest is kept. soup: "greedy" or "uniform" instead.
        say: called with each row's figures.

    Raises:
        UserError: bad input.
    """
    if len(models) < 2 or (soup is None and len(models) > 2):
        raise UserError(
            "give two models for a curve between them, or several and --soup greedy or --soup uniform"
        )
    chooses = soup == GREEDY or (soup is None and len(alphas) > 1)
    trained, ingredients = find_ingredients(models, weights)
    files = list(data)
    if chooses and not files:
        if trained.recipe.data.val is None:
            raise UserError(
                "the recipe names no validation file to choose by; give one with --data FILE.beton"
            )
        files = [Path(trained.recipe.data.val)]
    world = find_world(device)
    shared = count_training_images(files[0], ingredients) if chooses and world.is_main else {}
    with evaluating(world):
        trained.model.to(world.device)
        evaluator = _Evaluator(
            trained, files, world, only_present_classes, say if world.is_main else lambda text: None
        )
        if soup is None:
            found = _interpolate(evaluator, ingredients, sorted(set(alphas)))
        else:
            found = _greedy(evaluator, ingredients) if soup == GREEDY else _uniform(evaluator, ingredients)
        trained.model.load_state_dict(found.state)
    if found.selection is not None and shared:
        found = replace(found, shared=shared)
        say(
            f"warning: {found.selection}: {found.overlap()}; the choice favours models that have seen them; give other images as "
            "the first --data"
        )
    return trained, found


def _interpolate(
    evaluator: _Evaluator, ingredients: Sequence[Ingredient], alphas: Sequence[float]
) -> Average:
    start, end = (ingredient.read() for ingredient in ingredients)
    rows = [evaluator.row(f"alpha {a:g}", interpolate(start, end, a), a) for a in alphas]
    chosen = max(rows, key=lambda row: row.top1) if evaluator.data else rows[0]
    state = interpolate(start, end, chosen.alpha or 0.0)
    names = [ingredient.name for ingredient in ingredients]
    return evaluator.average(WISE, ingredients, names, rows, chosen, state, len(alphas) > 1)


def _uniform(evaluator: _Evaluator, ingredients: Sequence[Ingredient]) -> Average:
    mean, rows = RunningMean(), []
    for ingredient in ingredients:
        state = ingredient.read()
        mean = mean.with_state(state)
        if evaluator.data:
            rows.append(evaluator.row(ingredient.name, state))
    names, state = [ingredient.name for ingredient in ingredients], mean.state()
    chosen = evaluator.row("uniform soup", state)
    return evaluator.average("uniform soup", ingredients, names, [*rows, chosen], chosen, state, False)


def _greedy(evaluator: _Evaluator, ingredients: Sequence[Ingredient]) -> Average:
    alone = [(evaluator.row(one.name, one.read()), one) for one in ingredients]
    ranked = sorted(alone, key=lambda pair: -pair[0].top1)
    best, first = ranked[0]
    mean, members = RunningMean().with_state(first.read()), [first.name]
    rows = [row for row, _ in alone]
    for _, ingredient in ranked[1:]:
        tried = mean.with_state(ingredient.read())
        row = evaluator.row(f"soup with {ingredient.name}", tried.state())
        rows.append(row)
        if row.top1 >= best.top1:
            mean, best = tried, row
            members.append(ingredient.name)
    return evaluator.average("greedy soup", ingredients, members, rows, best, mean.state(), True)
