"""The training loop, checkpoints, evaluation, distribution, preemption."""
