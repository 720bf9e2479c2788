"""Fine-tune CLIP vision transformers on ImageNet-scale data for the fewest GPU-hours."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from beton_tools import (
    __version__ as __version__,  # beton_tools says where compiled code is kept, before any is defined
)

# On a CPU, torch's threads and the loader's share the cores: threads that spin while they wait take the cores from those
# that work, and a step takes up to five times as long. Read when OpenMP starts, so before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from fastft.augment.policies import AugmentPolicy
    from fastft.data.loader import AsTuples, Batch, EvalLoader, Output, TrainLoader
    from fastft.data.order import Shard
    from fastft.evaluate.predictor import Prediction, Predictor
    from fastft.jobs.fit import TrainedRun, fit, load
    from fastft.recipe import Recipe, load_recipe

_MODULES = {
    "augment.policies": ("AugmentPolicy",),
    "jobs.fit": ("TrainedRun", "fit", "load"),
    "data.loader": ("AsTuples", "Batch", "EvalLoader", "Output", "TrainLoader"),
    "data.order": ("Shard",),
    "evaluate.predictor": ("Prediction", "Predictor"),
    "recipe": ("Recipe", "load_recipe"),
}
# imported when first used
__all__ = [
    "AsTuples", "AugmentPolicy", "Batch", "EvalLoader", "Output", "Prediction", "Predictor", "Recipe", "Shard",
    "TrainLoader", "TrainedRun", "fit", "load", "load_recipe",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    """Return the names for completion: the public ones, imported or not."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
