"""The CUDA stream that training runs on."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

HIGH_PRIORITY = -1  # CUDA: lower numbers go first


def training_stream(device: torch.device) -> AbstractContextManager:
    """Context in which PyTorch queues work on a high-priority stream; on a CPU it does nothing.

    The loader's augmentation kernels run on streams of normal priority: blocks of the training step that are ready to run
    go before theirs.
    """
    if device.type != "cuda":
        return nullcontext()
    stream = _high_priority_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)


@cache
def _high_priority_stream(device: torch.device) -> torch.cuda.Stream:
    """One per device: PyTorch caches memory by stream, so the trainings of a sweep share it."""
    return torch.cuda.Stream(device, priority=HIGH_PRIORITY)
