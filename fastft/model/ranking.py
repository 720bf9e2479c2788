"""The order of classes by their logits: one rule wherever images are classified."""

import torch


def rank_classes(logits_BK: torch.Tensor, k: int) -> torch.Tensor:
    """int64 (B, min(k, K)): the classes of the k largest logits, the largest first; of equal logits the lower class first.

    Logits in half precision are often equal, and the order that `torch.topk` gives them depends on k. The first class is that
    of `argmax` in NumPy and torch.
    """
    return logits_BK.argsort(dim=1, descending=True, stable=True)[:, :k]
