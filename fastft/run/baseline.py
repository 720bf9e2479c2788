"""`baseline.json` of a run directory: the linear probe whose head the run starts from, and its scores before training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from beton_tools.base.atomic import write_text
from beton_tools.base.typed_json import Count, Document, Number, Object
from fastft.run.run_directory import read_json

BASELINE = "baseline.json"


class Baseline(Document, omit_defaults=True):
    """A linear probe and what it is right about.

    Attributes:
        request: what the run was asked for; see `fastft.run.continuation.request_key`.
        images: that the probe was fitted to.
        penalty, scale: of the ridge regression.
        seconds: that features, fit and evaluation took.
        raw: scores on the validation images, if there are any.
        selection: {"raw": scores} on the images of `data.selection_share`, if there are any.
        right: whether it classifies each image that compares weights correctly, as bits in hexadecimal digits.
    """

    request: str
    images: Count
    penalty: Number
    scale: Number
    seconds: Number
    raw: Object | None = None
    selection: dict[str, Object] | None = None
    right: str = ""

    @property
    def scores(self) -> dict[str, Any]:
        """Of the images that compare weights: the left-out ones, or else the validation images; empty without images."""
        return (self.selection or {}).get("raw") or self.raw or {}

    def right_of(self, shape: Sequence[int]) -> np.ndarray | None:
        """Whether it classifies each image (or each label of it) correctly; None if it was scored on other images.

        shape: of the array, (N,) or (N, K).
        """
        if not self.right or self.scores.get("samples") != shape[0]:
            return None
        bits = np.frombuffer(bytes.fromhex(self.right), np.uint8)
        return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)

    def as_dict(self) -> dict[str, Any]:
        """The entry of result.json."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return {key: value for key, value in values.items() if key not in ("request", "right")}


def pack_bits(right: np.ndarray) -> str:
    """`Baseline.right` of a bool array."""
    return np.packbits(right).tobytes().hex()


def write_baseline(folder: Path, baseline: Baseline) -> None:
    write_text(folder / BASELINE, json.dumps(msgspec.to_builtins(baseline), indent=1))


def read_baseline(folder: Path) -> Baseline | None:
    """The baseline of a run; None if it does not start from a linear probe.

    Raises:
        UserError: the file cannot be read.
    """
    stored: Mapping[str, Any] = read_json(folder / BASELINE, Baseline, "delete it and run the same command again")
    return msgspec.convert(stored, Baseline) if stored else None
