"""The training loop: steps, distributed training, evaluation within a run, checkpoints, preemption."""

from contextlib import suppress

with suppress(ImportError):  # of FFCV, which steps do not need
    from fastft.train.train import train

__all__ = ["train"]
