"""The head that a run starts from: a linear probe on the frozen tower, and the baseline that fine-tuning must beat."""
