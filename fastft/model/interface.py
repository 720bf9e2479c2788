"""The interface between trainer and model, implemented by fastft's own CLIP tower and by timm's models.

Stochastic layers take given uniform numbers, so that a seed and a step repeat them exactly. Shapes: B images, N tokens,
D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fastft.model.arch import Arch, load_open_clip_arch
from fastft.model.timm_arch import TimmArch, load_timm_arch, measure
from fastft.recipe.constants import TIMM

TowerArch: TypeAlias = Arch | TimmArch


def load_arch(name: str) -> TowerArch:
    """Return the architecture for `model.arch`: 'timm/NAME', an open_clip model name, or a .json file like open_clip's.

    Raises the same errors as `load_timm_arch` and `load_open_clip_arch`.
    """
    return load_timm_arch(name) if name.startswith(TIMM) else load_open_clip_arch(name)


def arch_from_dict(values: Mapping[str, Any]) -> TowerArch:
    """Rebuild an architecture from `asdict`, for checkpoints and exports.

    Raises:
        UserError: the architecture is too large, or a timm model is missing or built differently in the installed timm.
        ValueError, TypeError: the values are not an architecture.
    """
    if "timm" not in values:
        return Arch(**values)
    arch = measure(values["timm"], values["image_size"])
    if asdict(arch) != dict(values):
        raise ValueError(f"the installed timm builds {values['timm']} with other dimensions")
    return arch


class DropPath(nn.Module):
    """Stochastic depth: keep a sample's branch if its uniform number is below 1 - rate, scaled by 1 / (1 - rate)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, uniform_B: Tensor | None) -> Tensor:
        """x: (B, ...)."""
        if uniform_B is None or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask_B = uniform_B < keep
        return x * (mask_B / keep).to(x.dtype).view(-1, *(1,) * (x.ndim - 1))


class PatchDropout(nn.Module):
    """Keep the first `prefix` tokens, and the (1 - rate) of the patch tokens with the largest uniform numbers."""

    def __init__(self, rate: float, prefix: int = 1):
        super().__init__()
        self.rate, self.prefix = rate, prefix

    def choose(self, x_BND: Tensor, uniform_BN: Tensor | None) -> Tensor | None:
        """Return indices (B, kept) among the patch tokens, or None if all are kept."""
        if uniform_BN is None or self.rate == 0:
            return None
        patches = x_BND.shape[1] - self.prefix
        return uniform_BN[:, :patches].topk(count_kept(patches, self.rate), dim=1).indices

    def keep(self, x_BND: Tensor, index_BK: Tensor | None) -> Tensor:
        if index_BK is None:
            return x_BND
        index = index_BK.unsqueeze(-1).expand(-1, -1, x_BND.shape[2])
        return torch.cat([x_BND[:, : self.prefix], x_BND[:, self.prefix :].gather(1, index)], dim=1)

    def forward(self, x_BND: Tensor, uniform_BN: Tensor | None) -> Tensor:
        return self.keep(x_BND, self.choose(x_BND, uniform_BN))


def count_kept(patches: int, rate: float) -> int:
    """Count the patch tokens that patch dropout keeps."""
    return max(1, round(patches * (1 - rate)))


class ImageTower(nn.Module):
    """The pretrained part of a classifier.

    Attributes:
        arch: the architecture, from which it can be rebuilt together with the recipe.
        grad_checkpointing: recompute activations in the backward pass.
        has_attention_kernels: whether `set_attention_kernel` has a choice.
        fused: compute training steps with `fastft.model.fused`, where `step_choice.failure` finds no reason not to.
    """

    arch: TowerArch
    grad_checkpointing: bool
    patch_dropout: PatchDropout
    has_attention_kernels: bool
    fused = False

    @property
    def noise_columns(self) -> int:
        """Uniform numbers per image that a training pass needs. 0 without stochastic layers."""
        raise NotImplementedError

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The modules that are compiled one by one."""
        raise NotImplementedError

    def set_attention_kernel(self, kernel: str) -> None:
        """Use one of `fastft.model.attention.ATTENTION_KERNELS`, or 'auto'."""
        raise NotImplementedError

    def restore_buffers(self) -> None:
        """Compute what checkpoints do not hold, after a model built on the meta device has been given its weights."""


class ImageClassifier(nn.Module):
    """Images (B, 3, S, S) to logits (B, num_classes): a tower and a linear head.

    Attributes:
        pool: as the recipe's `model.pool`, or "timm" for a timm model that pools by itself.
    """

    visual: ImageTower
    head: nn.Linear
    pool: str

    def pooled(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the head's input, (B, head.in_features)."""
        raise NotImplementedError

    def layer_id(self, name: str) -> int:
        """Return a parameter's layer: 0 for embeddings, 1 to arch.layers for blocks, arch.layers + 1 for the head."""
        raise NotImplementedError

    def takes_weight_decay(self, name: str, parameter: nn.Parameter) -> bool:
        raise NotImplementedError
