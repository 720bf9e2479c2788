"""`baseline.json` in a run directory: the linear probe that the run starts from, and its scores before training.

It also has the scores of a linear probe at a larger image size, if the run keeps one to compare it with the trained model.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from beton_tools.base.typed_json import Count, Document, Number
from fastft.run.evaluations import ByWeights, Scores
from fastft.run.json_files import read_document, write_document

BASELINE = "baseline.json"


class Baseline(Document, omit_defaults=True):
    """A linear probe, and which images it classifies correctly.

    Attributes:
        images: how many images the probe was fitted to.
        penalty, scale: of the ridge regression.
        seconds: time for computing features, fitting and evaluation.
        raw: scores on the validation images, if there are any.
        selection: scores on the images that `data.selection_share` reserves, if there are any.
        request: what the run was asked for (`fastft.run.inputs.Inputs.request`). Not in result.json.
        right: one bit for each image that compares weights, in hexadecimal digits: whether the probe classifies it
            correctly. Not in result.json.
        image_size: set only for the larger probe.
        larger: the linear probe at a larger image size than the run trains at, if there is one.
    """

    images: Count
    penalty: Number
    scale: Number
    seconds: Number
    raw: Scores | None = None
    selection: ByWeights | None = None
    request: str = ""
    right: str = ""
    image_size: Count | None = None
    larger: "Baseline | None" = None

    @property
    def summary(self) -> "Baseline":
        """The baseline without the fields that result.json leaves out."""
        return replace(self, request="", right="", larger=self.larger and self.larger.summary)

    def at(self, image_size: int | None) -> "Baseline | None":
        """Return the probe that a `WeightChoice` with this `image_size` takes."""
        return self if image_size is None else self.larger

    def raw_at(self, image_size: int | None) -> Scores | None:
        """Return the validation scores of the probe that `at` returns. None if it has no scores."""
        probe = self.at(image_size)
        return None if probe is None else probe.raw

    @property
    def scores(self) -> Scores | None:
        """Scores on the images that compare weights: the left-out images, else the validation images.

        None without either.
        """
        return self.raw if self.selection is None else self.selection.raw

    def right_of(self, shape: Sequence[int]) -> np.ndarray | None:
        """Return whether the probe classifies each image, or each of its labels, correctly.

        None if it was scored on other images.
        Args:
            shape: the array's shape, (N,) or (N, K).
        """
        if self.scores is None or self.scores.samples != shape[0]:
            return None
        bits = np.frombuffer(bytes.fromhex(self.right), np.uint8)
        return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)


def pack_bits(right: np.ndarray) -> str:
    """Pack a bool array into `Baseline.right`."""
    return np.packbits(right).tobytes().hex()


def write_baseline(folder: Path, baseline: Baseline) -> None:
    write_document(folder / BASELINE, baseline)


def read_baseline(folder: Path) -> Baseline | None:
    """Read a run's baseline. None if the run does not start from a linear probe.

    Raises:
        UserError: the file cannot be read.
    """
    return read_document(folder / BASELINE, Baseline, "delete it and run the same command again")
