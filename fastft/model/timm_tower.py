"""timm's models as classifiers.

timm builds, interpolates and initialises them, and fastft draws the random numbers for each step. Pretrained weights
can be timm's own, files in the forms that timm converts, or folders from timm and open_clip.

Parameters keep timm's names behind `visual.trunk.`, open_clip's prefix for timm's towers.
"""

import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from beton_tools.base.errors import UserError, first_sentence
from beton_tools.base.user_files import expand_home
from fastft.model.attention_pool import NAME as ATTENTION_POOL
from fastft.model.attention_pool import QUERIES, AttentionPool
from fastft.model.classifier import ATTENTION, CLASS_PATCHES, HEAD_STD, class_and_patches, count_frozen_blocks
from fastft.model.interface import DropPath, ImageClassifier, ImageTower, PatchDropout
from fastft.model.timm_arch import TimmArch, Trunk, create_timm, layer_ids, restore_buffers
from fastft.model.weight_files import find_weight_folder, read_weights
from fastft.model.weights import is_transformers, load_fitting
from fastft.recipe.constants import TIMM

TRUNK = "visual.trunk."
TIMM_POOL = "timm"  # `ImageClassifier.pool` for a model that pools as timm does
NEW_HEADS = (CLASS_PATCHES, ATTENTION)  # read the tokens themselves, so timm's head is replaced
# parts for pretraining, which the tower does not have: MAE's decoder and mask, heads
PRETRAINING = ("decoder", "mask_token", "head", "contrastive", "dino_head", "ibot_head")


class Noise:
    """Uniform numbers (B, columns) for the current pass, for all stochastic layers in a tower. None disables them."""

    uniform_BC: Tensor | None = None


class NoisyDropPath(nn.Module):
    """Replaces timm's DropPath, which draws from torch's generator."""

    def __init__(self, rate: float, noise: Noise, column: int):
        super().__init__()
        self.drop_path, self._noise, self._column = DropPath(rate), noise, column

    def forward(self, x: Tensor) -> Tensor:
        uniform_BC = self._noise.uniform_BC
        return self.drop_path(x, None if uniform_BC is None else uniform_BC[:, self._column])


class NoisyPatchDropout(nn.Module):
    """Replaces timm's PatchDropout, also in the form that returns the kept tokens' indices."""

    def __init__(self, dropout: PatchDropout, noise: Noise, columns: slice, returns_indices: bool):
        super().__init__()
        self.dropout, self._noise, self._columns = dropout, noise, columns
        self._returns_indices = returns_indices

    def forward(self, x_BND: Tensor) -> Any:
        uniform_BC = self._noise.uniform_BC
        index = self.dropout.choose(x_BND, None if uniform_BC is None else uniform_BC[:, self._columns])
        kept = self.dropout.keep(x_BND, index)
        return (kept, index) if self._returns_indices else kept


class TimmTower(ImageTower):
    """A timm model with its head.

    Args:
        trunk: built by `create_timm`. Its stochastic layers are replaced.
        pool: TIMM_POOL, or one of NEW_HEADS for a trunk whose head was replaced by `replace_head`.
    """

    arch: TimmArch
    has_attention_kernels = False

    def __init__(self, arch: TimmArch, trunk: Trunk, pool: str = TIMM_POOL):
        super().__init__()
        self.arch, self.trunk, self.pool = arch, trunk, pool
        self._noise = Noise()
        self._grad_checkpointing = False
        self.layer_of = layer_ids(trunk)  # timm's name for every parameter -> its layer
        exempt = tuple(trunk.no_weight_decay()) if hasattr(trunk, "no_weight_decay") else ()
        self.no_weight_decay = (*exempt, QUERIES)
        self.patch_dropout = PatchDropout(0.0)
        self._columns = 0  # noise columns: one per stochastic depth branch, then one per patch
        self._replace_stochastic_layers()

    def _replace_stochastic_layers(self) -> None:
        from timm.layers import DropPath as TimmDropPath
        from timm.layers import PatchDropout as TimmPatchDropout
        from timm.layers import PatchDropoutWithIndices

        modules = list(self.trunk.named_modules())
        for name, module in modules:
            if isinstance(module, TimmDropPath) and module.drop_prob:
                noisy = NoisyDropPath(float(module.drop_prob), self._noise, self._columns)
                self.trunk.set_submodule(name, noisy)
                self._columns += 1
        for name, module in modules:
            if isinstance(module, (TimmPatchDropout, PatchDropoutWithIndices)):
                columns = slice(self._columns, self._columns + self.arch.grid**2)
                self.patch_dropout = PatchDropout(module.prob, module.num_prefix_tokens)
                returns_indices = isinstance(module, PatchDropoutWithIndices)
                dropout = NoisyPatchDropout(self.patch_dropout, self._noise, columns, returns_indices)
                self.trunk.set_submodule(name, dropout)
                self._columns = columns.stop

    @property
    def noise_columns(self) -> int:
        return self._columns

    @property
    def grad_checkpointing(self) -> bool:
        return self._grad_checkpointing

    @grad_checkpointing.setter
    def grad_checkpointing(self, on: bool) -> None:
        """Recompute activations. Raises UserError if the model cannot."""
        if on == self._grad_checkpointing:
            return
        try:
            self.trunk.set_grad_checkpointing(on)
        except (AssertionError, AttributeError):
            raise UserError(
                f"{TIMM}{self.arch.timm} has no gradient checkpointing. Set --train.grad_checkpointing=false"
            ) from None
        self._grad_checkpointing = on

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """A ViT's blocks. Other models are compiled as a whole."""
        return list(getattr(self.trunk, "blocks", [self.trunk]))

    def set_attention_kernel(self, kernel: str) -> None:
        """Do nothing: timm chooses the kernel itself."""
        if kernel != "auto":
            raise ValueError(f"timm's models choose their attention kernel, not '{kernel}'")

    def restore_buffers(self) -> None:
        restore_buffers(self.trunk)

    def set_noise(self, images: Tensor, noise: Tensor | None) -> None:
        """Give the stochastic layers their numbers for a pass. By default they are drawn here. None are drawn outside training.

        The numbers stay until the next pass, because gradient checkpointing reads them again in the backward pass.
        """
        if not self.training or self._columns == 0:
            noise = None
        elif noise is None:
            noise = torch.rand(images.shape[0], self._columns, device=images.device)
        self._noise.uniform_BC = noise

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return logits (B, num_classes). noise: (B, noise_columns), uniform in [0, 1)."""
        if self.pool in NEW_HEADS:
            return self.trunk.head(self.pooled(images, noise))
        self.set_noise(images, noise)
        return self.trunk(images)

    def pooled(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the head's input."""
        self.set_noise(images, noise)
        trunk: Any = self.trunk
        features = trunk.forward_features(images)
        if self.pool in NEW_HEADS:  # fc_norm is an identity in models that normalise before they pool
            tokens_BND, prefix = trunk.fc_norm(features), trunk.num_prefix_tokens
            if self.pool == ATTENTION:
                return trunk.attention_pool(tokens_BND[:, prefix:])
            return class_and_patches(tokens_BND, prefix)
        return trunk.forward_head(features, pre_logits=True)


class TimmClassifier(ImageClassifier):
    """A timm model with timm's pooling and head, or with a head that reads the tokens themselves."""

    visual: TimmTower

    def __init__(self, tower: TimmTower):
        super().__init__()
        self.visual, self.pool = tower, tower.pool

    @property
    def head(self) -> nn.Linear:  # type: ignore[override]  # timm's own, which is registered in the trunk
        return self.visual.trunk.get_classifier()

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.visual(images, noise)

    def pooled(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.visual.pooled(images, noise)

    def layer_id(self, name: str) -> int:
        return self.visual.layer_of[name.removeprefix(TRUNK)]

    def takes_weight_decay(self, name: str, parameter: nn.Parameter) -> bool:
        """Return True if weight decay applies, as in `timm.optim`: not to 1-D tensors, nor where the model exempts."""
        exempt = any(fnmatch(name.removeprefix(TRUNK), pattern) for pattern in self.visual.no_weight_decay)
        return parameter.ndim > 1 and not exempt


def build_timm_classifier(
    arch: TimmArch,
    num_classes: int,
    *,
    drop_path: float = 0.0,
    patch_dropout: float = 0.0,
    head_init_scale: float = 1.0,
    pool: str = TIMM_POOL,
) -> TimmClassifier:
    """Build a classifier as timm initialises it, with the head's weights times `head_init_scale`.

    pool: as in `TimmTower`. Raises UserError if the model does not support an option.
    """
    trunk = create_timm(
        arch.timm, arch.image_size, num_classes, drop_path_rate=drop_path, patch_drop_rate=patch_dropout
    )
    if pool in NEW_HEADS:
        replace_head(trunk, arch, num_classes, pool)
    tower = TimmTower(arch, trunk, pool)
    if bool(drop_path) + bool(patch_dropout) and tower.noise_columns == 0:
        raise UserError(f"{TIMM}{arch.timm} has no stochastic layers. Leave model.drop_path at 0")
    if patch_dropout and tower.patch_dropout.rate == 0:
        raise UserError(f"{TIMM}{arch.timm} has no patch dropout. Leave model.patch_dropout at 0")
    model = TimmClassifier(tower)
    # arithmetic on the meta device imports torch's compiler, which takes a second
    if not model.head.weight.is_meta:
        with torch.no_grad():
            for parameter in model.head.parameters():
                parameter.mul_(head_init_scale)
    return model


def replace_head(trunk: Any, arch: TimmArch, num_classes: int, pool: str) -> None:
    """Replace the head by one that reads the tokens, with timm's initial weights for heads.

    Args:
        pool: CLASS_PATCHES (class token and mean patch token) or ATTENTION.

    Raises:
        UserError: the model has no such tokens, or no head with this name over them.
    """
    needs_class, advice = pool == CLASS_PATCHES, "Set --model.pool=patches, which pools as timm does"
    has_tokens = (
        hasattr(trunk, "fc_norm")
        and hasattr(trunk, "blocks")
        and trunk.get_classifier() is getattr(trunk, "head", None)
    )
    if not has_tokens or (needs_class and getattr(trunk, "cls_token", None) is None):
        tokens = "class token beside its patches" if needs_class else "patch tokens below its head"
        raise UserError(f"{TIMM}{arch.timm} has no {tokens}. {advice}")
    if getattr(trunk, "attn_pool", None) is not None:
        raise UserError(f"{TIMM}{arch.timm} has a pretrained attention pooling. {advice}")
    if pool == ATTENTION:
        trunk.attention_pool = AttentionPool(arch.width, trunk.blocks[0].attn.num_heads)
    trunk.head = nn.Linear(2 * arch.width if needs_class else arch.width, num_classes)
    if not trunk.head.weight.is_meta:
        nn.init.trunc_normal_(trunk.head.weight, std=HEAD_STD)
        nn.init.zeros_(trunk.head.bias)


def check_drop_path(arch: TimmArch) -> None:
    """Raise UserError if one stochastic depth layer serves several branches, or rows that are not images.

    timm draws random numbers for each of them, whereas here a layer has one number per image. The check runs a pass
    with 2 images on the meta device.
    """
    calls: list[tuple[nn.Module, int]] = []
    with torch.device("meta"), torch.no_grad():
        tower = TimmTower(arch, create_timm(arch.timm, arch.image_size, num_classes=2, drop_path_rate=0.1)).eval()
        for layer in tower.modules():
            if isinstance(layer, NoisyDropPath):
                layer.register_forward_pre_hook(lambda layer, inputs: calls.append((layer, inputs[0].shape[0])))
        tower(torch.empty(2, 3, arch.image_size, arch.image_size))
    if len({layer for layer, _ in calls}) < len(calls) or any(rows != 2 for _, rows in calls):
        raise UserError(f"{TIMM}{arch.timm} shares a stochastic depth between branches. Leave model.drop_path at 0")


def freeze_timm(model: TimmClassifier, *, first_conv: bool, trainable_layers: int | None) -> None:
    """Disable gradients for the first convolution and for everything below the top `trainable_layers` layers.

    Raises UserError if timm does not name the first convolution, or if the model has fewer layers.
    """
    tower = model.visual
    frozen = count_frozen_blocks(tower.arch.layers, trainable_layers)
    if first_conv:
        names = tower.trunk.pretrained_cfg.get("first_conv")
        if not names:
            raise UserError(
                f"timm does not name the first convolution of {tower.arch.timm}. Set --model.freeze_conv1=false"
            )
        for name in (names,) if isinstance(names, str) else names:
            tower.trunk.get_submodule(name).requires_grad_(False)
    if frozen:
        for name, parameter in tower.trunk.named_parameters():
            parameter.requires_grad_(tower.layer_of[name] > frozen)


# pretrained weights -----------------------------------------------------------------------------------------------------


def load_timm_weights(model: TimmClassifier, weights: str) -> None:
    """Fill everything but the head from a file, a timm or open_clip folder, 'timm/NAME', or 'hf-hub:ORG/NAME'.

    timm's own converters read the forms that timm knows: its own, open_clip's, MAE's, DINO's, BEiT's, and others
    published by the authors of its models. Positions are interpolated. Raises UserError if the weights are unreadable
    or belong to another model.
    """
    name, trunk = model.visual.arch.timm, model.visual.trunk
    folder = find_weight_folder(weights)
    theirs = None if folder is None else folder.timm_name  # also None for CLIP's own ViT, which timm converts
    if theirs is not None and theirs.partition(".")[0] != name.partition(".")[0]:
        raise UserError(f"{weights} holds timm's {theirs}. Set --model.arch={TIMM}{theirs}")
    state = read_weights(folder or expand_home(weights))
    if is_transformers(state):
        raise UserError(
            f"{weights} is a CLIP model from transformers. Set model.arch to open_clip's name, such as ViT-B-16-quickgelu"
        )
    if any(key.startswith(TRUNK) for key in state):
        state = {k.removeprefix(TRUNK): v for k, v in state.items() if k.startswith(TRUNK)}
    error = f"weights {weights} do not fit {TIMM}{name}"
    heads = trunk.pretrained_cfg["classifier"]
    head = tuple(f"{h}." for h in ((heads,) if isinstance(heads, str) else heads))
    own = trunk.state_dict().keys()
    state = {
        key: value
        for key, value in _convert(trunk, state, name, error).items()
        if not key.startswith(head) and (key in own or not key.startswith((*PRETRAINING, ATTENTION_POOL)))
    }
    load_fitting(trunk, state, error, lambda key: key.startswith((*head, ATTENTION_POOL)))


def _convert(trunk: Trunk, state: dict[str, Tensor], name: str, error: str) -> dict[str, Tensor]:
    """Convert to timm's names and shapes with the converter in the module that defines the model."""
    import timm  # takes seconds

    module = sys.modules[timm.model_entrypoint(name.partition(".")[0]).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return dict(convert(state, trunk))
    except Exception as broken:  # converters are written for the authors' files, and fail in many ways on other files
        raise UserError(f"{error} ({type(broken).__name__}: {first_sentence(broken)}). Check model.arch") from None
