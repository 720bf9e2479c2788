"""The models of an average: checkpoints of one architecture and one set of classes, and the start of a run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from beton_tools.base.errors import UserError
from fastft.evaluate.trained import Trained, load_trained
from fastft.model.recipe_model import build_model
from fastft.train.head_start import PROBE

START = "start"  # in the place of a checkpoint: what the next model's training started from
State = dict[str, Tensor]


@dataclass(frozen=True)
class Ingredient:
    """A model's name for tables, and its weights in fp32 on the CPU, read when they are needed."""

    name: str
    read: Callable[[], State]


def find_ingredients(models: Sequence[str], weights: str) -> tuple[Trained, list[Ingredient]]:
    """(the last model, all of them). The last one's recipe, classes and transform are those of the average.

    models: run directories or checkpoints, or "start" before one of them. weights: as `load_trained`.

    Raises:
        UserError: a model is missing or damaged, or they differ in architecture, head or classes.
    """
    if models[-1] == START:
        raise UserError(f"'{START}' is what the run after it started from; give that run after it")
    cpu = torch.device("cpu")
    last = load_trained(Path(models[-1]), cpu, weights)
    found, labels = [], _labels(models)
    for position, name in enumerate(models):
        path = Path(models[position + 1] if name == START else name)
        model = load_trained(path, cpu, weights)
        _refuse_other(model, last, name)
        read = partial(read_start, model) if name == START else partial(_read, path, weights)
        found.append(Ingredient(labels[position], read))
    return last, found


def _labels(models: Sequence[str]) -> list[str]:
    """Short names for tables: the last parts of the paths, or all of them if two are equal."""
    short = [Path(name).name for name in models]
    names = short if len(set(short)) == len(short) else list(models)
    return [f"start of {names[k + 1]}" if name == START else names[k] for k, name in enumerate(models)]


def _read(path: Path, weights: str) -> State:
    return load_trained(path, torch.device("cpu"), weights).model.state_dict()


def read_start(run: Trained) -> State:
    """The weights that a run started from, built again from its recipe: pretrained tower, and `model.head` or a seeded head.

    Raises:
        UserError: the pretrained weights or the head are not to be had, or the head was fitted to the training images.
    """
    if run.recipe.model.head_init == PROBE:
        raise UserError(
            f"{run.path}: its head started from ridge regression, which is not kept; average two checkpoints, or train from the "
            "head of fastft zeroshot"
        )
    return build_model(run.recipe, arch=run.model.visual.arch).state_dict()


def _refuse_other(found: Trained, expected: Trained, name: str) -> None:
    """Raise UserError if two models cannot be averaged."""
    ours, theirs = ({k: v.shape for k, v in t.model.state_dict().items()} for t in (found, expected))
    if (
        ours != theirs
        or found.model.visual.arch != expected.model.visual.arch
        or found.model.pool != expected.model.pool
    ):
        raise UserError(
            f"{name} has another architecture or head than {expected.path}; average models of one recipe"
        )
    if found.outputs != expected.outputs:
        raise UserError(f"{name} has other classes than {expected.path}; average models of the same classes")


def interpolate(start: State, end: State, alpha: float) -> State:
    """(1 - alpha) * start + alpha * end; exactly one of the two at 0 and 1."""
    return {name: torch.lerp(value, end[name], alpha) for name, value in start.items()}


@dataclass(frozen=True)
class RunningMean:
    """The mean of `count` states, summed in fp64."""

    count: int = 0
    total: State = field(default_factory=dict)

    def with_state(self, state: State) -> "RunningMean":
        """The mean with one more state."""
        total = {k: v.double() + self.total[k] if self.total else v.double() for k, v in state.items()}
        return RunningMean(self.count + 1, total)

    def state(self) -> State:
        return {name: (value / self.count).float() for name, value in self.total.items()}
