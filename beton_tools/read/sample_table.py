"""The samples of one or more `.beton` files as columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from beton_tools.base.errors import UserError

FLOAT_TYPE, INT_TYPE, IMAGE_TYPE = 0, 1, 2  # ids of field types; source: ffcv 1.0.2, `ffcv/types.py`


@dataclass(frozen=True)
class Field:
    name: str
    type_id: int
    column: str  # its name in the metadata rows


def image_field(fields: tuple[Field, ...]) -> Field:
    """The only image field; files without one, or with several, are refused when they are opened."""
    return next(f for f in fields if f.type_id == IMAGE_TYPE)


@dataclass(frozen=True, eq=False)
class SampleTable(ABC):
    """Samples by id, N of them.

    Attributes:
        metadata: structured array (N,), dtype as in the file, in memory.
        sizes: int64 (N,), bytes of each image.
    """

    fields: tuple[Field, ...]
    metadata: np.ndarray = field(repr=False)
    sizes: np.ndarray = field(repr=False)

    @property
    @abstractmethod
    def title(self) -> str:
        """The name for messages."""

    @abstractmethod
    def image_bytes(self, sample_id: int) -> np.ndarray:
        """The stored bytes of a sample, uint8: a JPEG, or height * width * 3 raw pixels.

        Raises:
            UserError: no such sample, or its file has become shorter since it was opened, or cannot be read.
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
        """int64 (N,).

        Raises:
            UserError: the file has no int field.
        """
        ints = [f for f in self.fields if f.type_id == INT_TYPE]
        if not ints:
            raise UserError(f"{self.title}: has no label (int) field; it cannot be used for classification")
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
