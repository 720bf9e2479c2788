"""The split of an earlier run: images that were there stay on the side on which that run had them.

A run that starts from the weights of another one would otherwise be evaluated on images that its tower has been trained on.
Images are known by their content: a corrected label moves a file to another class folder.
"""

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from beton_tools.base.errors import UserError
from beton_tools.base.user_files import expand_home, read_user_text
from beton_tools.sources import Source
from fastft.photos.same_images import contents
from fastft.photos.state import SPLIT
from fastft.recipe import Recipe

MAX_BYTES = 1 << 30
NEW, TRAIN, VAL, NONE = -1, 0, 1, 2  # NONE: of a unit without old images
SIDES = {"train": TRAIN, "val": VAL}


@dataclass(frozen=True)
class OldSplit:
    """The sides of the images of an earlier run, by content.

    images: their number. saw_all: the run was trained on both sides (`train.refit`).
    """

    run: Path
    by_content: Mapping[str, int]
    images: int
    saw_all: bool = False

    def sides(self, source: Source) -> np.ndarray:
        """int8 (N,): TRAIN or VAL of the images that the run had, NEW of others."""
        return np.array([self.by_content.get(text, NEW) for text in contents(source)], np.int8)

    def describe(self, sides: np.ndarray, held: np.ndarray) -> str:
        """A line for the log: what became of the images of the earlier run, and of the new ones."""
        known, new = int((sides != NEW).sum()), int((sides == NEW).sum())
        parts = [f"{known:,} images are on the side on which {self.run} had them"]
        if new:
            parts.append(f"{new:,} are new, {int(held[sides == NEW].sum()):,} of these held out")
        if (gone := self.images - known) > 0:
            parts.append(f"{gone:,} of that run are not here")
        if self.saw_all:
            parts.append("which was trained on all of them: accuracy on the held-out ones is too high")
        return ", ".join(parts)


def read_old_split(recipe: Recipe) -> OldSplit | None:
    """The split of the run that `model.weights` names, or whose checkpoint or file it names; None for other weights.

    None also for a run without a split.csv. Raises UserError: the file is not one that fastft wrote.
    """
    weights = expand_home(recipe.model.weights)
    # RUN, RUN/checkpoints/best-0003, RUN/checkpoints/best-0003/model.safetensors
    run = next((place for place in (weights, *weights.parents[1:3]) if (place / "checkpoints").is_dir()), None)
    if run is None:
        return None
    places = {run / "data" / SPLIT: False, run.parent / "data" / SPLIT: True}  # the second of the run whose refit it is
    path, saw_all = next(((place, of_refit) for place, of_refit in places.items() if place.is_file()), (None, False))
    if path is None:
        return None
    by_content: dict[str, int] = {}
    images = 0
    try:
        for row in csv.DictReader(io.StringIO(read_user_text(path, MAX_BYTES, "the split.csv of a run"))):
            if row["split"] in SIDES:
                side, images = SIDES[row["split"]], images + 1
                # of identical images the tower has seen all if it was trained on one
                by_content[row["content"]] = min(side, by_content.get(row["content"], side))
    except KeyError as missing:
        raise UserError(f"{path} has no column {missing}; give other --model.weights") from None
    by_content.pop("", None)  # unreadable images
    return OldSplit(run, by_content, images, saw_all)


def hold_out_new(
    sides: np.ndarray, labels: np.ndarray, units: np.ndarray, hold_out: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """bool (N,): the images that are held out: old ones as before, and what `hold_out` chooses of the others.

    sides: as `OldSplit.sides`. labels, units: int64 (N,), as `hold_out` takes them. A new image whose unit has old ones joins
    them, on the side of the training images if these are on both.
    """
    old = sides != NEW
    _, unit = np.unique(units, return_inverse=True)
    of_units = np.full(len(units), NONE, np.int8)
    np.minimum.at(of_units, unit[old], sides[old])
    joined = of_units[unit]
    held = np.where(old, sides == VAL, joined == VAL)
    free = np.flatnonzero(~old & (joined == NONE))
    if len(free):
        held[free] = hold_out(labels[free], units[free])
    return held
