"""The number of batches that a loader holds at a time. Without imports, so that pricing a recipe does not load the decoder."""


def count_slots(batches_ahead: int) -> int:
    """Batches at a time, each with a buffer and a CUDA stream: one with the consumer, the others finished or in progress."""
    return max(3, batches_ahead + 1)
