"""Floating-point operations of timm's models, by torch's counter on the meta device."""

from functools import lru_cache

import torch
from torch import nn

from fastft.model.timm_arch import TimmArch
from fastft.model.timm_tower import TRUNK, TimmClassifier, build_timm_classifier


@lru_cache(maxsize=64)
def count_timm_forward(
    arch: TimmArch, num_classes: int, frozen_layers: int, patch_dropout: float
) -> tuple[float, float]:
    """(operations of a forward pass per image, those of them in frozen modules), 2 per multiply-add.

    frozen_layers: of these layers and the stem everything is frozen; with 0 nothing is.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports torch's compiler, which takes a second

    with torch.device("meta"):
        model = build_timm_classifier(arch, num_classes, patch_dropout=patch_dropout)
        # the counter's hooks take no latent parameters that require gradients
        model.train().requires_grad_(False)
        images = torch.empty(1, 3, arch.image_size, arch.image_size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(images)
    by_module = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    total = float(counter.get_total_flops())
    return total, _frozen(model, frozen_layers, by_module) if frozen_layers else 0.0


def _frozen(model: TimmClassifier, layers: int, by_module: dict[str, int]) -> float:
    """Operations in the largest modules whose parameters are all in frozen layers."""

    def of(module: nn.Module, name: str) -> float:
        names = [f"{name}.{key}" for key, _ in module.named_parameters()]
        if names and all(model.layer_id(n) <= layers for n in names):
            return float(by_module.get(f"{type(model).__name__}.{name}", 0))
        return sum(of(child, f"{name}.{key}") for key, child in module.named_children())

    return of(model.visual.trunk, TRUNK.rstrip("."))
