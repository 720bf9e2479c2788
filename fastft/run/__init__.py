"""The run directory and all that is stored in it: checkpoints, metrics, chosen weights."""
