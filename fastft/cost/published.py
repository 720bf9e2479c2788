"""Figures of the paper's own runs: the accuracy after every epoch."""

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def reference_curves() -> dict[str, dict[str, Any]]:
    """Name of the final recipe -> arch, image_size, epochs, and by epoch train_loss, top1_raw, top1_ema."""
    text = files("fastft.cost").joinpath("reference_curves.json").read_text("utf-8")
    return json.loads(text)["curves"]


def reference_of(arch: str, image_size: int) -> tuple[str | None, dict[str, Any] | None]:
    """The paper's run of an architecture and image size: (name of its recipe, curve); (None, None) if there is none."""
    for name, curve in reference_curves().items():
        if (curve["arch"], curve["image_size"]) == (arch, image_size):
            return name, curve
    return None, None
