"""`.beton` files to batches: order, decode, augmentation and exact evaluation on FFCV's engine."""

import torch

_threads = torch.get_num_threads()
import ffcv.pipeline.compiler  # noqa: E402, F401

torch.set_num_threads(_threads)  # FFCV's compiler leaves torch with one thread when it is imported

from fastft.data.loader import Batch, EvalLoader, TrainLoader  # noqa: E402
from fastft.data.stage import SampleError  # noqa: E402

__all__ = ["Batch", "EvalLoader", "SampleError", "TrainLoader"]
