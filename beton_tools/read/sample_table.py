"""The samples in one or more `.beton` files as columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from beton_tools.base.errors import UserError

_ROWS = 1 << 18  # labels that are counted at once, because counting copies them
FLOAT_TYPE, INT_TYPE, IMAGE_TYPE, ARRAY_TYPE = 0, 1, 2, 4  # field type ids (ffcv 1.0.2, `ffcv/types.py`)


@dataclass(frozen=True)
class Field:
    """A field in the file. For an array field, `array` has the dtype and shape of each sample's value."""

    name: str
    type_id: int
    column: str  # its name in the metadata rows
    array: tuple[str, tuple[int, ...]] | None = None


def image_field(fields: tuple[Field, ...]) -> Field:
    """Return the only image field. Files with none, or with several, are refused when they are opened."""
    return next(f for f in fields if f.type_id == IMAGE_TYPE)


@dataclass(frozen=True, eq=False)
class SampleTable(ABC):
    """N samples by id.

    Attributes:
        metadata: Structured array (N,), with the file's dtype, in memory.
        sizes: int64 (N,), bytes per image.
        label_sets: (N, K) uint8 or float32, with 1 for each class that an image has. None for one label per image.
    """

    fields: tuple[Field, ...]
    metadata: np.ndarray = field(repr=False)
    sizes: np.ndarray = field(repr=False)
    label_sets: np.ndarray | None = field(default=None, repr=False, kw_only=True)

    @property
    @abstractmethod
    def title(self) -> str:
        """The name for messages."""

    @abstractmethod
    def image_bytes(self, sample_id: int) -> np.ndarray:
        """Return a sample's stored bytes, uint8: a JPEG, or height * width * 3 raw pixels.

        Raises:
            UserError: There is no such sample, or its file has become shorter since it was opened, or cannot be read.
        """

    def read_bytes(self, sample_id: int) -> bytes:
        """Return the same as `image_bytes`, as a bytes object."""
        return self.image_bytes(sample_id).tobytes()

    @property
    def num_samples(self) -> int:
        return len(self.metadata)

    def __len__(self) -> int:
        return len(self.metadata)

    @property
    def image_column(self) -> np.ndarray:
        return self.metadata[image_field(self.fields).column]

    @property
    def labels(self) -> np.ndarray:
        """int64 (N,), or `label_sets`.

        Raises:
            UserError: The file has neither an int field nor a label array, or several int fields of which none is called
                "label".
        """
        if self.label_sets is not None:
            return self.label_sets
        ints = [f for f in self.fields if f.type_id == INT_TYPE]
        if not ints:
            raise UserError(f"{self.title}: has no label field (int or array), so it cannot be used for classification")
        own = [f for f in ints if f.name == "label"] or ints
        if len(own) > 1:
            names = " or ".join(f.name for f in own)
            raise UserError(
                f"{self.title}: {names} could be the label field. Write the file again, and call it 'label'"
            )
        return self.metadata[own[0].column]

    @property
    def pointers(self) -> np.ndarray:
        """int64 (N,), a view into `metadata`: each image's offset in its file, checked to be inside the pages."""
        return self.image_column["data_ptr"].view(np.int64)

    @property
    def heights(self) -> np.ndarray:
        return self.image_column["height"]

    @property
    def widths(self) -> np.ndarray:
        return self.image_column["width"]

    @property
    def modes(self) -> np.ndarray:
        """uint8 (N,): JPEG_MODE or RAW_MODE."""
        return self.image_column["mode"]

    def check_id(self, sample_id: int) -> None:
        """Raise UserError if there is no such sample."""
        if not 0 <= sample_id < self.num_samples:
            raise UserError(f"{self.title}: no sample {sample_id}. Ids run from 0 to {self.num_samples - 1}")


def classes_of(label: np.ndarray) -> list[int]:
    """Return one image's classes: its label, or the classes that its row in `label_sets` has."""
    return [int(label)] if np.ndim(label) == 0 else np.flatnonzero(label).tolist()


def count_classes(labels: np.ndarray, at_least: int = 0) -> np.ndarray:
    """Count the images in each class, int64 (K,), for int64 labels (N,) or label sets (N, K).

    Args:
        at_least: The smallest K for int64 labels.
    """
    if labels.ndim > 1:
        return np.count_nonzero(labels, axis=0)
    counts = np.zeros(max(at_least, int(labels.max(initial=-1)) + 1), np.int64)
    for first in range(0, len(labels), _ROWS):
        counts += np.bincount(labels[first : first + _ROWS], minlength=len(counts))
    return counts


def strata(labels: np.ndarray) -> np.ndarray:
    """Return each image's label, int64 (N,). For several labels it is the rarest, and K where an image has none."""
    if labels.ndim == 1:
        return labels
    rarity = np.where(labels > 0, count_classes(labels), len(labels) + 1)
    return np.where(labels.any(axis=1), rarity.argmin(axis=1), labels.shape[1])
