"""Ranking of classes by their logits, with ties broken by the class index."""

import torch


def rank_classes(logits_BK: torch.Tensor, k: int) -> torch.Tensor:
    """Classes of the k largest logits in descending order, int64 (B, min(k, K)). Of equal logits the lower index comes first.

    The first column equals `argmax` in NumPy and torch. `torch.topk` orders equal logits, which are common in half precision,
    differently for different k.
    """
    return logits_BK.argsort(dim=1, descending=True, stable=True)[:, :k]
