"""Mixup and CutMix for a batch on its device, drawn from counters: the same at any micro-batch or world size.

timm's Mixup in "batch" mode draws one lambda for each process's batch and pairs image i with B-1-i. Here, a draw
belongs to a block of `BLOCK` positions in the global batch, which is the per-process batch in the paper's B/16 run.
Partners are the neighbours 2k and 2k+1, which no even cut of the batch separates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from beton_tools.base.errors import UserError
from fastft.augment.rng import GAMMA_COUNTERS, MIX_STREAM, below, beta, philox, unit

BLOCK = 256
DECIDE, MIXUP_BETA, CUTMIX_BETA = 0, GAMMA_COUNTERS, 4 * GAMMA_COUNTERS


class Mix(NamedTuple):
    """How a block is mixed. An image keeps the fraction `lam`. If there is a box, exactly its pixels are exchanged."""

    lam: float
    box: tuple[int, int, int, int] | None  # y, x, h, w


NOT_MIXED = Mix(1.0, None)


@dataclass(frozen=True)
class Mixer:
    """Mixes images and turns labels into smoothed targets. Every parameter has the same meaning as in timm.

    Args:
        prob: how probable it is that a block is mixed at all.
        switch_prob: how probable CutMix is if both alphas are above 0.
    """

    mixup_alpha: float
    cutmix_alpha: float
    num_classes: int
    seed: int
    prob: float = 1.0
    switch_prob: float = 0.5
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        if min(self.mixup_alpha, self.cutmix_alpha) < 0 or max(self.mixup_alpha, self.cutmix_alpha) <= 0:
            raise UserError("mixup and cutmix are both 0 or one is negative. Give an alpha above 0, or no mixer")

    def __call__(
        self, images_BCHW: Tensor, labels_B: Tensor, *, epoch: int, step: int, first_position: int
    ) -> tuple[Tensor, Tensor]:
        """Return (mixed images, float32 targets (B, num_classes)).

        `images_BCHW` is overwritten. Nothing waits for the device.

        Args:
            first_position: image 0's position in this step's global batch.

        Raises:
            UserError: the images do not begin and end between two pairs.
        """
        count = len(images_BCHW)
        if first_position % 2 or count % 2:
            raise UserError(f"{count} images from position {first_position}, but mixing needs even micro-batches")
        targets_BK = smoothed_targets(labels_B, self.num_classes, self.label_smoothing)
        begin = 0
        while begin < count:
            block, offset = divmod(first_position + begin, BLOCK)
            end = min(count, begin + BLOCK - offset)
            mix = self.draw(epoch, step, block, images_BCHW.shape[2], images_BCHW.shape[3])
            mix_pairs(images_BCHW[begin:end], targets_BK[begin:end], mix)
            begin = end
        return images_BCHW, targets_BK

    def draw(self, epoch: int, step: int, block: int, height: int, width: int) -> Mix:
        """Draw the mix for block number `block` in a step's global batch."""
        key, where = np.uint64(self.seed), (epoch, step, MIX_STREAM | block)
        whether, which, top, left = philox(key, DECIDE, *where)
        if unit(whether) >= self.prob:
            return NOT_MIXED
        both = self.mixup_alpha > 0 and self.cutmix_alpha > 0
        if (unit(which) < self.switch_prob) if both else self.cutmix_alpha > 0:
            lam = beta(self.cutmix_alpha, key, CUTMIX_BETA, *where)
            centre = int(below(top, height)), int(below(left, width))
            return cutmix(lam, centre, height, width)
        return Mix(float(beta(self.mixup_alpha, key, MIXUP_BETA, *where)), None)


def cutmix(lam: float, centre: tuple[int, int], height: int, width: int) -> Mix:
    """Return a box that covers the fraction 1 - lam around a centre, clipped to the image.

    Lambda is corrected to the fraction that stays uncovered.
    """
    ratio = math.sqrt(1.0 - lam)
    cut_h, cut_w = int(height * ratio), int(width * ratio)
    y0, y1 = max(centre[0] - cut_h // 2, 0), min(centre[0] + (cut_h + 1) // 2, height)
    x0, x1 = max(centre[1] - cut_w // 2, 0), min(centre[1] + (cut_w + 1) // 2, width)
    return Mix(1.0 - (y1 - y0) * (x1 - x0) / (height * width), (y0, x0, y1 - y0, x1 - x0))


def smoothed_targets(labels_B: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return targets (B, num_classes) float32: smoothing / K everywhere, and 1 - smoothing more at the label.

    With labels (B, K), 1 - smoothing is added at all of an image's labels.
    """
    off = smoothing / num_classes
    if labels_B.ndim == 2:
        return labels_B * (1.0 - smoothing) + off
    targets = torch.full((len(labels_B), num_classes), off, device=labels_B.device)
    return targets.scatter_(1, labels_B.long().view(-1, 1), 1.0 - smoothing + off)


def mix_pairs(images_BCHW: Tensor, targets_BK: Tensor, mix: Mix) -> None:
    """Mix images 2k and 2k+1, and their targets, in place."""
    lam, box = mix
    if lam == 1.0:
        return
    if box is None:
        _blend_pairs(images_BCHW, lam)
    else:
        y, x, h, w = box
        inside = images_BCHW[:, :, y : y + h, x : x + w]
        inside.copy_(_swapped(inside))
    _blend_pairs(targets_BK, lam)


def _swapped(values: Tensor) -> Tensor:
    """Return a copy in which rows 2k and 2k+1 are exchanged."""
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _blend_pairs(values: Tensor, lam: float) -> None:
    other = _swapped(values).mul_(1.0 - lam)
    values.mul_(lam).add_(other)
