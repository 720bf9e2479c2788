"""Some images of another source, such as one side of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from beton_tools.base.names import Names
from beton_tools.sources.base import Location, Source


@dataclass(frozen=True)
class SubsetSource(Source):
    """Image i is image `indices[i]` of `base`."""

    base: Source
    indices: np.ndarray

    def locate(self, i: int) -> Location:
        return self.base.locate(int(self.indices[i]))

    def stamps(self, chosen: np.ndarray) -> np.ndarray:
        return self.base.stamps(self.indices[chosen])


def subset(base: Source, indices: np.ndarray, classes: Sequence[str]) -> SubsetSource:
    """The images at `indices` of `base` in that order, labelled by the position of their class in `classes`.

    indices: int64. Every chosen image's class must be in `classes`.
    """
    position = {name: label for label, name in enumerate(classes)}
    renamed = np.array([position.get(name, -1) for name in base.classes], np.int64)
    readable = dict(zip(base.classes, base.class_names or (), strict=False))
    return SubsetSource(
        base.kind,
        base.root,
        tuple(classes),
        tuple(readable.get(name, name) for name in classes) if readable else None,
        renamed[base.labels[indices]],
        Names.of(base.names[i] for i in indices.tolist()),
        left_out=base.left_out,
        base=base,
        indices=indices,
    )
