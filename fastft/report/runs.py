"""A run directory as reports read it: recipe, metrics.jsonl, result.json. Works while the run still goes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from beton_tools.errors import UserError
from fastft.config import Recipe, recipe_from_dict

Line = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """Lines of metrics.jsonl by kind, in order of steps.

    intervals: loss, lr, images_per_second, wait_share, mfu, memory_gib. evaluations: raw_top1, ema_top1, ...
    splits: seconds by part of the step. machine: of the last start, empty where the trainer wrote none.
    """

    folder: Path
    recipe: Recipe
    intervals: list[Line]
    evaluations: list[Line]
    splits: list[Line]
    machine: Line
    finished: bool

    @property
    def steps(self) -> int:
        """Optimiser steps done, as far as logged."""
        return int(self.intervals[-1]["step"]) if self.intervals else 0

    @property
    def steps_per_epoch(self) -> int:
        """As trained: the file at hand may have had another size than the recipe says."""
        ends = [e["step"] / (e["epoch"] + 1) for e in self.evaluations]
        return round(ends[-1]) if ends else self._from_time_left()

    def _from_time_left(self) -> int:
        if not self.intervals:
            return max(1, self.recipe.steps_per_epoch())
        last = self.intervals[-1]
        left = last["seconds_left"] * last["images_per_second"] / self.recipe.optim.batch_size
        return max(1, round((last["step"] + left) / self.recipe.epochs))

    @property
    def total_steps(self) -> int:
        return self.recipe.epochs * self.steps_per_epoch

    def epoch_of(self, step: float) -> float:
        """Position in epochs, fractional: what all curves are drawn over."""
        return step / self.steps_per_epoch


def load_run(folder: Path) -> Run:
    """Raises UserError where the folder is no run directory, or its recipe cannot be read."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise UserError(
            f"{folder} is no run directory (no recipe.yaml); give the folder that fastft train wrote"
        )
    try:
        sections = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    result = _read_json(folder / "result.json")
    recipe = recipe_from_dict(str(result.get("recipe") or folder.name), sections)
    lines = read_metrics(folder / "metrics.jsonl")
    by_kind = {
        kind: [line for line in lines if line.get("kind") == kind]
        for kind in ("train", "eval", "split", "start")
    }
    return Run(
        folder=folder,
        recipe=recipe,
        intervals=by_kind["train"],
        evaluations=by_kind["eval"],
        splits=by_kind["split"],
        machine=by_kind["start"][-1] if by_kind["start"] else {},
        finished=bool(result),
    )


def read_metrics(path: Path) -> list[Line]:
    """The lines of a metrics.jsonl; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def _read_json(path: Path) -> Line:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {error}; delete it and run the same fastft train again"
        ) from None
