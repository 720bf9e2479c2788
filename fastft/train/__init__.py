"""The training loop: steps, distributed training, evaluation within a run, checkpoints, preemption."""

from fastft.train.train import train

__all__ = ["train"]
