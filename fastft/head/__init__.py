"""The head that a run starts from, which is a linear probe of the frozen tower and the baseline for fine-tuning to beat."""
