"""The training loop: steps, distributed training, evaluation within a run, checkpoints, preemption.

Nothing is imported here: the launcher of processes, `fastft.train.launch`, needs torch alone.
"""
