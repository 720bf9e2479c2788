"""Floating-point operations of a tower with its head (2 per multiply-add), of fastft's own tower from the shapes.

Only matrix products are counted, as is usual for MFU; the head is that of `model.pool=patches` (CLIP's projection of one token
would add 0.002 % to a B/16). Published counts: 17.6 GMAC for B/16 at 224 px, 81 for L/14.
"""

from dataclasses import dataclass

from fastft.model.stochastic import count_kept
from fastft.model.timm_arch import TimmArch
from fastft.model.tower_arch import TowerArch


@dataclass(frozen=True)
class Flops:
    """Operations per image. `train` is the forward pass and the backward pass of the trained part."""

    forward: float
    train: float


def count_flops(
    arch: TowerArch, num_classes: int, *, frozen_blocks: int = 0, patch_dropout: float = 0.0
) -> Flops:
    """Operations per image at the arch's image size.

    The backward pass costs twice the forward pass (gradients of inputs and of weights). As in the published figures, a
    patch embedding below trained blocks counts as trained even if it is frozen.
    """
    if isinstance(arch, TimmArch):
        from fastft.model.timm_flops import count_timm_forward  # needs torch's counter, which few commands do

        forward, frozen = count_timm_forward(arch, num_classes, frozen_blocks, patch_dropout)
        return Flops(forward, frozen + 3 * (forward - frozen))
    patches = count_kept(arch.grid**2, patch_dropout)
    tokens = patches + 1
    embed = arch.grid**2 * arch.width * 3 * arch.patch_size**2
    projections = tokens * arch.width * (4 * arch.width + 2 * arch.mlp_width)  # q, k, v, out and the MLP
    attention = 2 * tokens**2 * arch.width  # q k^T and its product with v
    block = projections + attention
    head = arch.width * num_classes
    frozen = embed * (frozen_blocks > 0) + frozen_blocks * block
    total = embed + arch.layers * block + head
    forward = 2.0 * total
    return Flops(forward, 2.0 * (frozen + 3 * (total - frozen)))
