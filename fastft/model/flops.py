"""Floating-point operations in a tower with its head (2 per multiply-add).

fastft's own tower is counted from its shapes, timm's models by torch's counter on the meta device. Only matrix products
are counted, as is usual for MFU. The head is the one for `model.pool=patches` (CLIP's projection of one token would add
0.002 % to a B/16, twice the head's inputs 0.004 %). Published counts: 17.6 GMAC for B/16 at 224 px, 81 for L/14.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from fastft.model.interface import ImageClassifier, TowerArch, count_kept
from fastft.model.timm_arch import TimmArch
from fastft.model.timm_tower import build_timm_classifier


@dataclass(frozen=True)
class Flops:
    """Operations per image. `train` is the forward pass, and the backward pass through the trained part.

    attention: the part of `train` for the products between query and key, and between their softmax and value.
    """

    forward: float
    train: float
    attention: float


def count_flops(arch: TowerArch, num_classes: int, *, frozen_blocks: int = 0, patch_dropout: float = 0.0) -> Flops:
    """Count the operations per image at the arch's image size.

    The backward pass costs twice the forward pass (gradients for inputs and for weights). As in the published figures,
    a patch embedding below trained blocks counts as trained even if it is frozen.
    """
    if isinstance(arch, TimmArch):
        forward, frozen, attention = _count_timm_forward(arch, num_classes, frozen_blocks, patch_dropout)
        train = frozen + 3 * (forward - frozen)
        return Flops(forward, train, train * attention / forward)
    patches = count_kept(arch.grid**2, patch_dropout)
    tokens = patches + 1
    embed = arch.grid**2 * arch.width * 3 * arch.patch_size**2
    projections = tokens * arch.width * (4 * arch.width + 2 * arch.mlp_width)  # q, k, v, out and the MLP
    attention = 2 * tokens**2 * arch.width  # q k^T and its product with v
    block = projections + attention
    head = arch.width * num_classes
    frozen = embed * (frozen_blocks > 0) + frozen_blocks * block
    total = embed + arch.layers * block + head
    attended = 2.0 * attention * (3 * arch.layers - 2 * frozen_blocks)
    return Flops(2.0 * total, 2.0 * (frozen + 3 * (total - frozen)), attended)


@lru_cache(maxsize=64)
def _count_timm_forward(
    arch: TimmArch, num_classes: int, frozen_layers: int, patch_dropout: float
) -> tuple[float, float, float]:
    """Count a forward pass per image: all operations, those in frozen modules and those in attention.

    A multiply-add counts 2. frozen_layers: everything in these layers and in the stem is frozen. 0 freezes nothing.
    """
    model, counts = _run_counted(arch, num_classes, patch_dropout)
    by_module = {name: sum(ops.values()) for name, ops in counts.items()}
    # on the meta device attention is two batched products, and no other part of these models has any
    attention = float(sum(n for op, n in counts["Global"].items() if "attention" in str(op) or "bmm" in str(op)))
    frozen = _frozen(model, frozen_layers, by_module) if frozen_layers else 0.0
    return float(by_module["Global"]), frozen, attention


@lru_cache(maxsize=8)  # each holds a model on the meta device. A recipe asks with its frozen layers, and without any
def _run_counted(
    arch: TimmArch, num_classes: int, patch_dropout: float
) -> tuple[ImageClassifier, dict[str, dict[Any, int]]]:
    """Run a forward pass on the meta device. Returns (the model, its operations by module and by kind)."""
    from torch.utils.flop_counter import FlopCounterMode  # imports torch's compiler, which takes a second

    with torch.device("meta"):
        model = build_timm_classifier(arch, num_classes, patch_dropout=patch_dropout)
        # the counter's hooks do not accept latent parameters that require gradients
        model.train().requires_grad_(False)
        images = torch.empty(1, 3, arch.image_size, arch.image_size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(images)
    return model, counter.get_flop_counts()


def _frozen(model: ImageClassifier, layers: int, by_module: dict[str, int]) -> float:
    """Sum the operations in the largest modules whose parameters are all in frozen layers."""

    trunk: Any = model.visual.trunk

    def of(module: nn.Module, name: str) -> float:
        names = [f"{name}.{key}" for key, _ in module.named_parameters()]
        if names and all(model.layer_id(n) <= layers for n in names):
            return float(by_module.get(f"{type(model).__name__}.{name}", 0))
        return sum(of(child, f"{name}.{key}") for key, child in module.named_children())

    return of(trunk, "visual.trunk")
