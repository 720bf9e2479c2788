"""The samples of one or more `.beton` files as columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from beton_tools.base.errors import UserError

FLOAT_TYPE, INT_TYPE, IMAGE_TYPE, ARRAY_TYPE = 0, 1, 2, 4  # ids of field types; source: ffcv 1.0.2, `ffcv/types.py`


@dataclass(frozen=True)
class Field:
    """array: dtype and shape of each sample's value, of a field of arrays."""

    name: str
    type_id: int
    column: str  # its name in the metadata rows
    array: tuple[str, tuple[int, ...]] | None = None


def image_field(fields: tuple[Field, ...]) -> Field:
    """The only image field; files without one, or with several, are refused when they are opened."""
    return next(f for f in fields if f.type_id == IMAGE_TYPE)


@dataclass(frozen=True, eq=False)
class SampleTable(ABC):
    """Samples by id, N of them.

    Attributes:
        metadata: structured array (N,), dtype as in the file, in memory.
        sizes: int64 (N,), bytes of each image.
        label_sets: (N, K) uint8 or float32, 1 for each class that an image has; None for one label per image.
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
        """The stored bytes of a sample, uint8: a JPEG, or height * width * 3 raw pixels.

        Raises UserError: no such sample, or its file has become shorter since it was opened, or cannot be read.
        """

    def read_bytes(self, sample_id: int) -> bytes:
        """The same as `image_bytes`, as a bytes object."""
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
        """int64 (N,), or `label_sets`. Raises UserError: the file has neither an int field nor an array of labels."""
        if self.label_sets is not None:
            return self.label_sets
        ints = [f for f in self.fields if f.type_id == INT_TYPE]
        if not ints:
            raise UserError(
                f"{self.title}: has no field of labels (int or array); it cannot be used for classification"
            )
        named = [f for f in ints if f.name == "label"]
        return self.metadata[(named or ints)[0].column]

    @property
    def pointers(self) -> np.ndarray:
        """int64 (N,), a view of `metadata`: offset of each image in its file; checked to be inside the pages."""
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
        """Raise a UserError if there is no such sample."""
        if not 0 <= sample_id < self.num_samples:
            raise UserError(f"{self.title}: no sample {sample_id}; ids run from 0 to {self.num_samples - 1}")


def classes_of(label: np.ndarray) -> list[int]:
    """The classes of one image: its label, or those that its row of `label_sets` has."""
    return [int(label)] if np.ndim(label) == 0 else np.flatnonzero(label).tolist()


def count_classes(labels: np.ndarray, at_least: int = 0) -> np.ndarray:
    """int64 (K,): images of each class, of int64 labels (N,) or label sets (N, K). at_least: the smallest K of labels."""
    return np.bincount(labels, minlength=at_least) if labels.ndim == 1 else np.count_nonzero(labels, axis=0)


def strata(labels: np.ndarray) -> np.ndarray:
    """int64 (N,): the label of each image; of several the rarest, and K where an image has none."""
    if labels.ndim == 1:
        return labels
    rarity = np.where(labels > 0, count_classes(labels), len(labels) + 1)
    return np.where(labels.any(axis=1), rarity.argmin(axis=1), labels.shape[1])
