"""`.beton` files to batches: order, decode, augmentation and exact evaluation on FFCV's engine."""

from fastft.data.loader import Batch, EvalLoader, TrainLoader
from fastft.data.stage import SampleError

__all__ = ["Batch", "EvalLoader", "SampleError", "TrainLoader"]
