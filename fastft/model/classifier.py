"""The fine-tuned model: tower -> pooled tokens -> linear head.

`model.pool` says how the tokens are pooled:

- patches, as in the paper: LayerNorm on every patch token, then the mean. The reference uses this order
  (`fc_norm(x[:, 1:]).mean(1)`), whereas BEiT and timm average first. The class token is in the sequence but not in the
  mean.
- class, as in timm's fine-tuned CLIP: the class token through ln_post.
- class+patches, as in DINOv2's linear heads: every token through ln_post, then the class token beside the mean over the
  patch tokens. The head has twice the tower's width as inputs.
- attention, as in attentive probes: LayerNorm on every patch token, then `fastft.model.attention_pool`.
- token, as in CLIP itself: the class token through ln_post and proj, scaled to length 1. A head made from text
  embeddings times CLIP's logit scale then gives CLIP's zero-shot logits (WiSE-FT, 2109.01903, fine-tunes from there).
"""

import math

import torch
from torch import Tensor, nn

from beton_tools.base.errors import UserError
from fastft.model.arch import Arch
from fastft.model.attention_pool import QUERIES, AttentionPool
from fastft.model.interface import ImageClassifier
from fastft.model.tower import PROJECTION, Tower

# reference: trunc_normal_(std=.02) for the weight, PyTorch's default for the bias, both multiplied by 0.001
HEAD_STD = 0.02
EMBEDDINGS = ("conv1", "class_embedding", "positional_embedding", "ln_pre")
# without weight decay, from which all 1-D tensors are exempt too
NO_DECAY = ("positional_embedding", "class_embedding", "rel_pos_bias.table", QUERIES, ".bias")
# values of `model.pool`
PATCHES, CLASS, CLASS_PATCHES, ATTENTION, TOKEN = "patches", "class", "class+patches", "attention", "token"
OF_PATCHES = (PATCHES, ATTENTION)  # with a norm of their own, fc_norm


class Classifier(ImageClassifier):
    """Images (B, 3, S, S) to logits (B, num_classes)."""

    visual: Tower

    def __init__(self, tower: Tower, num_classes: int, head_init_scale: float = 0.001, pool: str = PATCHES):
        super().__init__()
        self.visual, self.pool = tower, pool
        if pool in OF_PATCHES:
            self.fc_norm = nn.LayerNorm(tower.arch.width)  # eps 1e-5, as in the reference
        if pool == ATTENTION:
            self.attention_pool = AttentionPool(tower.arch.width, tower.arch.heads)
        width = tower.arch.width
        inputs = {TOKEN: tower.arch.embed_dim, CLASS_PATCHES: 2 * width}.get(pool, width)
        self.head = nn.Linear(inputs, num_classes)
        # arithmetic on the meta device imports torch's compiler, which takes a second
        if self.head.weight.is_meta:
            return
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD)
        with torch.no_grad():
            self.head.weight.mul_(head_init_scale)
            self.head.bias.mul_(head_init_scale)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.head(self.pooled(images, noise))

    def pooled(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the head's input: (B, width), (B, 2 width) with class+patches, or CLIP's embedding (B, embed_dim)."""
        tokens_BND = self.visual(images, noise)
        if self.pool == TOKEN:
            return self.visual.embedding(tokens_BND)
        if self.pool == CLASS:
            return self.visual.ln_post(tokens_BND[:, 0])
        if self.pool == CLASS_PATCHES:
            return class_and_patches(self.visual.ln_post(tokens_BND))
        patches_BND = self.fc_norm(tokens_BND[:, 1:])
        return self.attention_pool(patches_BND) if self.pool == ATTENTION else patches_BND.mean(1)

    def patch_votes(self, images: Tensor) -> Tensor:
        """Return each patch's part of the logits, (B, num_classes, grid, grid). Their mean over patches is the logits.

        This needs `pool` "patches": LayerNorm, mean and linear head can then change places.
        """
        assert self.pool == PATCHES
        votes_BNK = self.head(self.fc_norm(self.visual(images)[:, 1:]))
        side = math.isqrt(votes_BNK.shape[1])
        return votes_BNK.mT.unflatten(2, (side, side))

    def layer_id(self, name: str) -> int:
        """Return 0 for embeddings, i + 1 for block i, and layers + 1 for everything else."""
        parts = name.split(".")
        if parts[0] == "visual" and parts[1] in EMBEDDINGS:
            return 0
        if parts[0] == "visual" and parts[1] == "transformer":
            return int(parts[3]) + 1
        return self.visual.arch.layers + 1

    def takes_weight_decay(self, name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim > 1 and not name.endswith(NO_DECAY)


def class_and_patches(tokens_BND: Tensor, prefix: int = 1) -> Tensor:
    """Return the class token and the patch tokens' mean, (B, 2 D).

    prefix: number of tokens before the patches. The class token is the first.
    """
    return torch.cat([tokens_BND[:, 0], tokens_BND[:, prefix:].mean(1)], dim=1)


def count_frozen_blocks(layers: int, trainable_layers: int | None) -> int:
    """Count the blocks below the top `trainable_layers` in a tower with `layers` blocks. None trains all.

    Raises UserError if the tower has fewer blocks.
    """
    if trainable_layers is None:
        return 0
    if trainable_layers > layers:
        raise UserError(f"model.trainable_layers is {trainable_layers}, but the tower has {layers} blocks")
    return layers - trainable_layers


def freeze(model: Classifier, *, conv1: bool, trainable_layers: int | None) -> None:
    """Disable gradients for the patch embedding (conv1) and for everything below the top `trainable_layers` blocks.

    Frozen blocks run without recording activations. If all blocks are trained, the other embeddings are trained too.
    CLIP's ln_post and proj are trained if any block is. Raises UserError if the tower has fewer blocks.
    """
    tower = model.visual
    tower.frozen_blocks = count_frozen_blocks(tower.arch.layers, trainable_layers)
    tower.conv1.requires_grad_(not conv1)
    if tower.frozen_blocks == 0:
        return
    tower.requires_grad_(False)
    for block in tower.transformer.resblocks[tower.frozen_blocks :]:
        block.requires_grad_(True)
    if trainable_layers:
        for name, parameter in tower.named_parameters():
            if name.startswith(PROJECTION):
                parameter.requires_grad_(True)


def build_classifier(
    arch: Arch,
    num_classes: int,
    *,
    layer_scale: float | None = None,
    rel_pos_bias: bool = False,
    drop_path: float = 0.0,
    patch_dropout: float = 0.0,
    head_init_scale: float = 0.001,
    pool: str = PATCHES,
    freeze_conv1: bool = True,
    trainable_layers: int | None = None,
) -> Classifier:
    """Build a classifier with fresh weights. Options are as in the recipe's `model`.

    `fastft.model.weights` fills the tower.
    """
    initial_scale = 1.0 if layer_scale is None and arch.layer_scale else layer_scale
    tower = Tower(
        arch,
        layer_scale=initial_scale,
        rel_pos_bias=rel_pos_bias,
        drop_path=drop_path,
        patch_dropout=patch_dropout,
        ln_post=pool not in OF_PATCHES,
        projection=pool == TOKEN,
    )
    model = Classifier(tower, num_classes, head_init_scale, pool)
    freeze(model, conv1=freeze_conv1, trainable_layers=trainable_layers)
    return model


def rank_classes(logits_BK: Tensor, k: int) -> Tensor:
    """Return the classes with the k largest logits in descending order, int64 (B, min(k, K)).

    The lower index wins a tie, so the first column equals `argmax` in NumPy and torch. `torch.topk` orders equal
    logits, which are common in half precision, differently for different k.
    """
    return logits_BK.argsort(dim=1, descending=True, stable=True)[:, :k]
