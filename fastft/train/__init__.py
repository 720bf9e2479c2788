"""The training loop: steps, distributed training, evaluation within a run, checkpoints, preemption.

This module imports nothing, because the process launcher, `fastft.train.launch`, needs only torch.
"""
