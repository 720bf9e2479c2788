"""The CLIP image tower with open_clip's parameter names, so that its state dicts load unchanged.

It computes the same numbers as open_clip's `VisionTransformer` up to the last block. ln_post and proj exist for the
`model.pool` values that use them. The paper's ablations add LayerScale, relative position bias, stochastic depth and
frozen blocks. Shapes: B images, N tokens (class token first), D width, H heads.
"""

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastft.model.arch import Arch
from fastft.model.attention import self_attention
from fastft.model.fused import add_norm
from fastft.model.interface import DropPath, ImageTower, PatchDropout
from fastft.model.linear import norm_branch, quick_gelu_mlp

PROJECTION = ("ln_post.", "proj")  # parameters after the blocks, which not every `model.pool` uses


class PatchEmbedding(nn.Conv2d):
    """Images (B, 3, S, S) to patch tokens (B, N - 1, D), by a convolution whose stride is its kernel size.

    It is computed as one matrix product, because three input channels suit convolution kernels badly. The weight keeps
    the convolution's shape (D, 3, P, P).
    """

    def __init__(self, width: int, patch_size: int):
        super().__init__(3, width, patch_size, patch_size, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        # in channels-last memory order, which rearranges neither the weight nor rows of pixels
        return F.linear(patchify(images, self.kernel_size[0]), self.weight.permute(0, 2, 3, 1).flatten(1))


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Turn (B, 3, S, S) into (B, (S / P)^2, 3 P^2).

    The patches come in rows from the top, and the values in a patch by row, column and channel.
    """
    B, C, size, _ = images.shape
    grid = size // patch_size
    blocks = images.view(B, C, grid, patch_size, grid, patch_size)
    return blocks.permute(0, 2, 4, 3, 5, 1).reshape(B, grid**2, patch_size**2 * C)


class LayerScale(nn.Module):
    """A learnt factor per channel."""

    def __init__(self, width: int, initial: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), float(initial)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def resize_positions(positions_ND: Tensor, grid: int) -> Tensor:
    """Resize positions for a class token and a square grid to another grid. The class position is unchanged.

    Bicubic, align_corners=False, as the reference. Where the grid shrinks, which the reference does not do, the resizing
    is antialiased, as in timm.

    Args:
        grid: patches along a side.

    Returns:
        (1 + grid^2, D): in fp32, or as they are if the grid is the same.
    """
    old = math.isqrt(positions_ND.shape[0] - 1)
    if old == grid:
        return positions_ND
    patches = positions_ND[1:].float().T.reshape(1, -1, old, old)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False, antialias=grid < old)
    return torch.cat([positions_ND[:1].float(), patches.flatten(2)[0].T])


class RelativePositionBias(nn.Module):
    """One learnt bias per head and relative offset, initially zero.

    The table is BEiT's: patch offsets + 3 for the class token.
    """

    def __init__(self, grid: int, heads: int):
        super().__init__()
        self.table = nn.Parameter(torch.zeros((2 * grid - 1) ** 2 + 3, heads))
        self.index: Tensor
        self.register_buffer("index", relative_position_index(grid), persistent=False)

    def forward(self) -> Tensor:
        return self.table[self.index].permute(2, 0, 1)  # H, N, N


def relative_position_index(grid: int) -> Tensor:
    """Return (N, N) int64 rows in the bias table, N = grid^2 + 1.

    The result is on the CPU even for a model built on the meta device.
    """
    axis = torch.arange(grid, device="cpu")
    coords = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
    offset = coords[:, :, None] - coords[:, None, :] + grid - 1
    index = torch.empty(grid**2 + 1, grid**2 + 1, dtype=torch.int64, device="cpu")
    index[1:, 1:] = offset[0] * (2 * grid - 1) + offset[1]
    patches = (2 * grid - 1) ** 2
    index[0, :], index[:, 0], index[0, 0] = patches, patches + 1, patches + 2
    return index


class Attention(nn.Module):
    """Multi-head self-attention with nn.MultiheadAttention's parameter names."""

    def __init__(self, width: int, heads: int, rel_pos_bias: RelativePositionBias | None):
        super().__init__()
        self.heads = heads
        self.kernel = "auto"  # one of ATTENTION_KERNELS, set by `Tower.set_attention_kernel`
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.rel_pos_bias = rel_pos_bias
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.out_proj(self.attend(x_BND))

    def attend(self, x_BND: Tensor) -> Tensor:
        """Attend without the output projection."""
        score_bias = None if self.rel_pos_bias is None else self.rel_pos_bias()
        return self_attention(x_BND, self.in_proj_weight, self.in_proj_bias, self.heads, self.kernel, score_bias)


class Mlp(nn.Module):
    """linear(gelu(linear(x))) with GELU, or with QuickGELU, which OpenAI's CLIP was trained with."""

    def __init__(self, arch: Arch):
        super().__init__()
        self.quick_gelu = arch.quick_gelu
        self.c_fc = nn.Linear(arch.width, arch.mlp_width)
        self.c_proj = nn.Linear(arch.mlp_width, arch.width)

    def forward(self, x: Tensor) -> Tensor:
        if self.quick_gelu:
            return quick_gelu_mlp(x, self.c_fc.weight, self.c_fc.bias, self.c_proj.weight, self.c_proj.bias)
        return self.c_proj(F.gelu(self.c_fc(x)))

    def fused(self, x: Tensor) -> Tensor:
        """Compute the same in half precision on CUDA. The last bias is detached and receives its gradient elsewhere."""
        bias = self.c_proj.bias.detach()
        if self.quick_gelu:
            return quick_gelu_mlp(x, self.c_fc.weight, self.c_fc.bias, self.c_proj.weight, bias, fused=True)
        return F.linear(F.gelu(self.c_fc(x)), self.c_proj.weight, bias)


class Block(nn.Module):
    def __init__(self, arch: Arch, layer_scale: float | None, rel_pos_bias: bool, drop_path: float):
        super().__init__()
        bias = RelativePositionBias(arch.grid, arch.heads) if rel_pos_bias else None
        self.ln_1 = nn.LayerNorm(arch.width, arch.norm_eps)
        self.attn = Attention(arch.width, arch.heads, bias)
        self.ls_1 = nn.Identity() if layer_scale is None else LayerScale(arch.width, layer_scale)
        self.ln_2 = nn.LayerNorm(arch.width, arch.norm_eps)
        self.mlp = Mlp(arch)
        self.ls_2 = nn.Identity() if layer_scale is None else LayerScale(arch.width, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BND: Tensor, noise_B2: Tensor | None) -> Tensor:
        first_B, second_B = (None, None) if noise_B2 is None else noise_B2.unbind(1)
        x_BND, normalised = norm_branch(x_BND, self.ln_1)
        x_BND = x_BND + self.drop_path(self.ls_1(self.attn(normalised)), first_B)
        x_BND, normalised = norm_branch(x_BND, self.ln_2)
        return x_BND + self.drop_path(self.ls_2(self.mlp(normalised)), second_B)


def run_fused(blocks: Sequence[Any], x_BND: Tensor) -> Tensor:
    """Compute each residual sum together with the LayerNorm after it, in half precision on CUDA.

    The blocks have neither LayerScale nor stochastic depth. After the last MLP comes no LayerNorm of all tokens, so it is the
    plain one.
    """
    if not blocks:
        return x_BND
    normalised = blocks[0].ln_1(x_BND)
    for block, following in zip_longest(blocks, blocks[1:]):
        out = block.attn.out_proj
        branch = F.linear(block.attn.attend(normalised), out.weight, out.bias.detach())
        x_BND, normalised = add_norm(x_BND, branch, out.bias, block.ln_2)
        if following is not None:
            x_BND, normalised = add_norm(x_BND, block.mlp.fused(normalised), block.mlp.c_proj.bias, following.ln_1)
    return x_BND + blocks[-1].mlp(normalised)


class Transformer(nn.Module):
    def __init__(self, blocks: list[Block]):
        super().__init__()
        self.resblocks = nn.ModuleList(blocks)


def _normal(scale: float, *shape: int) -> Tensor:
    """Draw normal numbers with this standard deviation, but none on the meta device.

    Arithmetic on the meta device imports torch's compiler.
    """
    values = torch.empty(shape)
    return values if values.is_meta else scale * values.normal_()


class Tower(ImageTower):
    """Images (B, 3, S, S) to tokens (B, N, D) after the last block, class token first.

    Args:
        layer_scale: initial value for LayerScale factors. None for no LayerScale.
        rel_pos_bias: use a zero-initialised relative position bias in every block.
        drop_path: the last block's rate. Rates grow linearly from 0 at the first block.
        patch_dropout: fraction of patch tokens that is dropped in training.
        ln_post, projection: include CLIP's last LayerNorm, and its projection. `embedding` needs both.
    """

    arch: Arch
    has_attention_kernels = True

    def __init__(
        self,
        arch: Arch,
        *,
        layer_scale: float | None = None,
        rel_pos_bias: bool = False,
        drop_path: float = 0.0,
        patch_dropout: float = 0.0,
        ln_post: bool = False,
        projection: bool = False,
    ):
        super().__init__()
        self.arch = arch
        self.frozen_blocks = 0  # the embeddings and this many lower blocks run without gradients
        self.grad_checkpointing = False
        self.conv1 = PatchEmbedding(arch.width, arch.patch_size)
        scale = arch.width**-0.5
        self.class_embedding = nn.Parameter(_normal(scale, arch.width))
        self.positional_embedding = nn.Parameter(_normal(scale, arch.tokens, arch.width))
        self.stochastic = drop_path > 0 or patch_dropout > 0
        self.patch_dropout = PatchDropout(patch_dropout)
        self.ln_pre = nn.LayerNorm(arch.width, arch.norm_eps) if arch.ln_pre else nn.Identity()
        rates = [drop_path * i / max(1, arch.layers - 1) for i in range(arch.layers)]
        self.transformer = Transformer([Block(arch, layer_scale, rel_pos_bias, rate) for rate in rates])
        # created last, so that the other initial weights are the same without them
        if ln_post:
            self.ln_post = nn.LayerNorm(arch.width, arch.norm_eps)
        if projection:
            self.proj = nn.Parameter(_normal(scale, arch.width, arch.embed_dim))

    @torch.no_grad()
    def resize(self, image_size: int) -> None:
        """Resize the positions to another image size. Raises UserError as `Arch.at`."""
        self.arch = self.arch.at(image_size)
        resized_ND = resize_positions(self.positional_embedding, self.arch.grid)
        self.positional_embedding = nn.Parameter(resized_ND.to(self.positional_embedding.dtype))

    @property
    def noise_columns(self) -> int:
        """Uniform numbers per image in a training pass: two per block, one per patch. 0 without stochastic layers."""
        return 2 * self.arch.layers + self.arch.grid**2 if self.stochastic else 0

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.transformer.resblocks)

    def set_attention_kernel(self, kernel: str) -> None:
        """Use one of `ATTENTION_KERNELS` in every block, or 'auto'."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.kernel = kernel

    def embed(self, images: Tensor, uniform_BN: Tensor | None = None) -> Tensor:
        """Return the tokens that enter the first block, in the parameters' dtype.

        Images of another size than the tower's get positions that are resized to their grid (`train.eval_image_size`).

        Blocks add to them in fp32 under autocast, so that the sum over blocks is never rounded to half precision.
        """
        x = self.conv1(images)
        token = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([token, x], dim=1)
        positions_ND = resize_positions(self.positional_embedding, math.isqrt(x.shape[1] - 1))
        x = x + positions_ND.to(x.dtype)
        return self.ln_pre(self.patch_dropout(x, uniform_BN).to(self.positional_embedding.dtype))

    def _split_noise(self, images: Tensor, noise: Tensor | None) -> tuple[Tensor | None, Sequence[Tensor | None]]:
        """Return the columns for patch dropout and each block. None outside training or without stochastic layers."""
        columns, layers = self.noise_columns, self.arch.layers
        if not self.training or columns == 0:
            return None, [None] * layers
        if noise is None:
            noise = torch.rand(images.shape[0], columns, device=images.device)
        return noise[:, 2 * layers :], noise[:, : 2 * layers].chunk(layers, dim=1)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """noise: (B, noise_columns), uniform in [0, 1), for stochastic layers in training. Drawn here by default."""
        blocks, frozen = self.transformer.resblocks, self.frozen_blocks
        patch_noise, block_noise = self._split_noise(images, noise)
        with torch.set_grad_enabled(torch.is_grad_enabled() and frozen == 0):
            x = self.embed(images, patch_noise)
        with torch.set_grad_enabled(False):
            for block, uniform in zip(blocks[:frozen], block_noise, strict=False):
                x = block(x, uniform)
        if self.fused and torch.is_grad_enabled():
            return run_fused([*blocks][frozen:], x)
        for block, uniform in zip(blocks[frozen:], block_noise[frozen:], strict=True):
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, uniform, use_reentrant=False)
            else:
                x = block(x, uniform)
        return x

    def embedding(self, tokens_BND: Tensor) -> Tensor:
        """Return CLIP's image embedding (B, embed_dim) from tokens: class token, ln_post, proj, scaled to length 1.

        It needs `projection`, and equals open_clip's `encode_image(images, normalize=True)`.
        """
        return F.normalize(self.ln_post(tokens_BND[:, 0]) @ self.proj, dim=-1)
