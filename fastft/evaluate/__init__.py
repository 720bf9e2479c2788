"""Checkpoint to numbers: evaluation, predictions, embeddings, neighbours, zero-shot, averages."""
