"""The run directory and everything stored in it: checkpoints, metrics, chosen weights."""
