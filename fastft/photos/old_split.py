"""An earlier run's split: its images stay on the side on which that run had them.

Otherwise, a run that starts from another run's weights would be evaluated on images that its tower was trained on.
Images are recognised by their content, because a corrected label moves a file to another class folder.
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
from fastft.photos.same_images import contents, old_contents
from fastft.photos.state import SPLIT
from fastft.recipe import AskedRecipe

MAX_SPLIT_BYTES = 1 << 30
NEW, TRAIN, VAL, NONE = -1, 0, 1, 2  # NONE: the unit has no old images
SIDES = {"train": TRAIN, "val": VAL}


@dataclass(frozen=True)
class OldSplit:
    """On which sides an earlier run's images were, by content.

    Attributes:
        images: how many there are.
        saw_all: the run was trained on both sides (`train.refit`).
    """

    run: Path
    by_content: Mapping[str, int]
    images: int
    saw_all: bool = False

    def sides(self, source: Source) -> np.ndarray:
        """Return int8 (N,): TRAIN or VAL for images that the run had, NEW for others."""
        has_old_texts = any("-" in text for text in self.by_content)
        texts = old_contents(source) if has_old_texts else contents(source)
        return np.array([self.by_content.get(text, NEW) for text in texts], np.int8)

    def describe(self, sides: np.ndarray, held: np.ndarray) -> str:
        """Return a log line: on which sides the earlier run's images and the new ones are."""
        known, new = int((sides != NEW).sum()), int((sides == NEW).sum())
        parts = [f"{known:,} images keep the side (training or validation) that they had in {self.run}"]
        if new:
            parts.append(f"{new:,} are new, {int(held[sides == NEW].sum()):,} of these held out")
        if (gone := self.images - known) > 0:
            parts.append(f"{gone:,} images from that run are missing")
        line = ", ".join(parts)
        if self.saw_all:
            line += f". {self.run} was trained on all of them, so accuracy on the held-out ones is too high"
        return line


def read_old_split(recipe: AskedRecipe) -> OldSplit | None:
    """Read the split in the run that `model.weights` names, directly or by a checkpoint or file in it.

    Returns None for other weights, and for a run without a split.csv.

    Raises:
        UserError: the file is not one that fastft wrote.
    """
    weights = expand_home(recipe.model.weights)
    # RUN, RUN/checkpoints/best-0003, RUN/checkpoints/best-0003/model.safetensors
    run = next((place for place in (weights, *weights.parents[1:3]) if (place / "checkpoints").is_dir()), None)
    if run is None:
        return None
    # the second: `run` is a refit inside its first run
    places = {run / "data" / SPLIT: False, run.parent / "data" / SPLIT: True}
    path, saw_all = next(((place, of_refit) for place, of_refit in places.items() if place.is_file()), (None, False))
    if path is None:
        return None
    by_content: dict[str, int] = {}
    images = 0
    try:
        for row in csv.DictReader(io.StringIO(read_user_text(path, MAX_SPLIT_BYTES, "the split.csv of a run"))):
            if row["split"] in SIDES:
                side, images = SIDES[row["split"]], images + 1
                # the tower has seen all identical images if it was trained on one
                by_content[row["content"]] = min(side, by_content.get(row["content"], side))
    except KeyError as missing:
        raise UserError(f"{path} has no column {missing}. Give other --model.weights") from None
    by_content.pop("", None)  # unreadable images
    return OldSplit(run, by_content, images, saw_all)


def hold_out_new(
    sides: np.ndarray, labels: np.ndarray, units: np.ndarray, hold_out: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Choose the images that are held out, bool (N,).

    Old images stay as they were, and `hold_out` chooses among the others. A new image whose unit has old ones joins
    them, on the training side if these are on both.

    Args:
        sides: as `OldSplit.sides`.
        labels, units: int64 (N,), as `hold_out` takes them.
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
