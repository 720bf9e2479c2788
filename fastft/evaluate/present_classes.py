"""Ranking among the classes of a file only, as published figures of ImageNet-A and ImageNet-R do (200 of 1,000 classes)."""

import numpy as np
import torch
from torch import Tensor, nn


class PresentClasses(nn.Module):
    """A model whose logits of classes without images are -inf: never predicted, and without probability.

    present: labels of the classes with images.
    """

    absent_K: Tensor

    def __init__(self, model: nn.Module, present: np.ndarray, outputs: int):
        super().__init__()
        absent_K = torch.ones(outputs, dtype=torch.bool)
        absent_K[torch.from_numpy(present)] = False
        self.model = model
        self.register_buffer("absent_K", absent_K)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).float().masked_fill(self.absent_K, float("-inf"))
