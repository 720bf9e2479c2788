"""`.beton` files to batches: order, decode, augmentation and exact evaluation, in a thread that works ahead of training.

The names are imported when first used, so that `fastft.data.classes` and `fastft.data.order` load no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastft.data.loader import Batch, EvalLoader, TrainLoader
    from fastft.data.order import Shard
    from fastft.data.stage import Output, SampleError

__all__ = ["Batch", "EvalLoader", "Output", "SampleError", "Shard", "TrainLoader"]

_MODULES = {"SampleError": "stage", "Shard": "order"}  # of the others: loader


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'loader')}"), name)
