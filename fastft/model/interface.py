"""The interface between trainer and model, which fastft's own CLIP tower and timm's models implement."""

from collections.abc import Sequence

from torch import Tensor, nn

from fastft.model.stochastic import PatchDropout
from fastft.model.tower_arch import TowerArch


class ImageTower(nn.Module):
    """The pretrained part of a classifier.

    Attributes:
        arch: its architecture, which together with the recipe builds it again.
        grad_checkpointing: recompute activations in the backward pass.
        patch_dropout: its `rate` may be set between two steps.
        has_attention_kernels: whether `set_attention_kernel` has a choice.
    """

    arch: TowerArch
    grad_checkpointing: bool
    patch_dropout: PatchDropout
    has_attention_kernels: bool

    @property
    def noise_columns(self) -> int:
        """Uniform numbers per image of a training pass; 0 without stochastic layers."""
        raise NotImplementedError

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The modules that are compiled, one by one."""
        raise NotImplementedError

    def set_attention_kernel(self, kernel: str) -> None:
        """Use one of `fastft.model.attention.ATTENTION_KERNELS`, or 'auto'."""
        raise NotImplementedError

    def restore_buffers(self) -> None:
        """Compute what checkpoints do not hold, when a model that was built on the meta device has been given its weights."""


class ImageClassifier(nn.Module):
    """Images (B, 3, S, S) to logits (B, num_classes): a tower and a linear head.

    Attributes:
        pool: as the recipe's `model.pool`; "timm" for timm's models, which pool by themselves.
    """

    visual: ImageTower
    head: nn.Linear
    pool: str

    def pooled(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """The head's input, (B, arch.width)."""
        raise NotImplementedError

    def layer_id(self, name: str) -> int:
        """The layer of a parameter: 0 for embeddings, 1 to arch.layers for blocks, arch.layers + 1 for the head."""
        raise NotImplementedError

    def takes_weight_decay(self, name: str, parameter: nn.Parameter) -> bool:
        raise NotImplementedError
