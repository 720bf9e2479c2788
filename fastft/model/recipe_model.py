"""The model that a recipe describes."""

from importlib.util import find_spec

import torch

from beton_tools.base.errors import UserError
from beton_tools.base.user_files import expand_home
from fastft.model.arch import Arch, refuse_pool_without_class_token
from fastft.model.attention import prepare_for_compile
from fastft.model.classifier import CLASS_PATCHES, OF_PATCHES, build_classifier
from fastft.model.head_file import read_head, set_head
from fastft.model.interface import ImageClassifier, TowerArch, load_arch
from fastft.model.timm_arch import TimmArch
from fastft.model.timm_tower import (
    NEW_HEADS,
    TIMM_POOL,
    build_timm_classifier,
    check_drop_path,
    freeze_timm,
    load_timm_weights,
)
from fastft.model.weights import check_activation, check_weights, load_tower_weights, name_weights
from fastft.recipe import Recipe
from fastft.recipe.constants import EVAL_IMAGE_SIZE

RECOMPILE_LIMIT = 128  # PyTorch's limit is 8. Beyond it blocks run uncompiled


def recipe_arch(recipe: Recipe) -> TowerArch:
    """Return the recipe's architecture at its image size.

    Raises the same errors as `load_arch`, `refuse_pool_without_class_token`, `check_activation` and `Arch.at`.
    """
    arch = load_arch(recipe.model.arch)
    if isinstance(arch, Arch) and recipe.model.weights != "random":
        check_activation(recipe.model.weights, recipe.model.arch, arch.quick_gelu)
    pool = recipe.model.pool
    if isinstance(arch, TimmArch):
        if pool not in (*OF_PATCHES, CLASS_PATCHES):
            raise UserError(
                f"{recipe.model.arch} pools as timm does, not as model.pool={pool}. Use an open_clip --model.arch, or "
                "--model.pool=patches"
            )
    elif pool not in OF_PATCHES:
        refuse_pool_without_class_token(recipe.model.arch)
    return arch.at(recipe.model.image_size)


def check_evaluated_size(recipe: Recipe, arch: TowerArch) -> None:
    """Raise UserError if the tower cannot be evaluated at `train.eval_image_size`."""
    if recipe.evaluated_size == recipe.model.image_size:
        return
    if isinstance(arch, TimmArch) or recipe.model.rel_pos_bias:
        what = "a tower with model.rel_pos_bias" if recipe.model.rel_pos_bias else recipe.model.arch
        raise UserError(f"{what} is evaluated at the size that it is trained at. Leave out {EVAL_IMAGE_SIZE}")
    arch.at(recipe.evaluated_size)


def check_model(recipe: Recipe) -> None:
    """Refuse options that `build_model` would refuse, before longer work begins, and download weights that are needed.

    Raises the same errors as `build_model`, except for errors in the contents of files.
    """
    arch, weights = recipe_arch(recipe), recipe.model.weights
    with torch.device("meta"):
        build_model(recipe, pretrained=False)
    if recipe.model.head is not None:
        read_head(expand_home(recipe.model.head))
    if weights != "random":
        name = name_weights(weights, arch.timm) if isinstance(arch, TimmArch) else weights
        check_weights(name, recipe.model.arch)


def build_model(recipe: Recipe, *, pretrained: bool = True, arch: TowerArch | None = None) -> ImageClassifier:
    """Build the classifier on the CPU, with pretrained weights in the tower.

    The head comes from `model.head`, or from the recipe's seed.

    Args:
        pretrained: False leaves the model at its random initialisation, for checkpoints that hold the weights.
        arch: the architecture stored in a checkpoint. None uses the one that the recipe names, to train it.
    """
    m = recipe.model
    if arch is None:
        arch = recipe_arch(recipe)
        check_evaluated_size(recipe, arch)
        if isinstance(arch, TimmArch) and m.drop_path:
            check_drop_path(arch)
    torch.manual_seed(recipe.train.seed)
    if isinstance(arch, TimmArch):
        return _build_timm(recipe, arch, pretrained)
    model = build_classifier(
        arch,
        recipe.data.num_classes,
        layer_scale=m.layer_scale,
        rel_pos_bias=m.rel_pos_bias,
        drop_path=m.drop_path,
        patch_dropout=m.patch_dropout,
        head_init_scale=m.head_init_scale,
        pool=m.pool,
        freeze_conv1=m.freeze_conv1,
        trainable_layers=m.trainable_layers,
    )
    if pretrained and m.weights != "random":
        pooling = {name: part for name, part in model.named_children() if name not in ("visual", "head")}
        load_tower_weights(model.visual, m.weights, m.arch, pooling)
    if pretrained and m.head is not None:
        path = expand_home(m.head)
        set_head(model, read_head(path), path)
    return model


def _build_timm(recipe: Recipe, arch: TimmArch, pretrained: bool) -> ImageClassifier:
    """Build a timm model with timm's own architecture and initialisation. Use `build_model` for the other towers.

    Raises UserError for an option that only fastft's own tower has, or that the model lacks.
    """
    m = recipe.model
    for option, is_set in (
        ("layer_scale", m.layer_scale is not None),
        ("rel_pos_bias", m.rel_pos_bias),
        ("head", m.head is not None),
    ):
        if is_set:
            raise UserError(f"model.{option} applies to fastft's own tower, not to {m.arch}. Leave it out")
    model = build_timm_classifier(
        arch,
        recipe.data.num_classes,
        drop_path=m.drop_path,
        patch_dropout=m.patch_dropout,
        head_init_scale=m.head_init_scale,
        pool=m.pool if m.pool in NEW_HEADS else TIMM_POOL,
    )
    if pretrained and m.weights != "random":
        load_timm_weights(model, name_weights(m.weights, arch.timm))
    freeze_timm(model, first_conv=m.freeze_conv1, trainable_layers=m.trainable_layers)
    return model


def compile_blocks(model: ImageClassifier, mode: str) -> None:
    """Compile the forward pass of each block in place. Blocks with the same shape share one graph.

    Compiling the whole model takes several times longer and gives a graph for each image size, or several under
    DistributedDataParallel.
    """
    prepare_for_compile()
    # a block is compiled again for each stochastic depth rate
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    # this would split each block's graph at DistributedDataParallel's buckets, although blocks are smaller than buckets
    torch._dynamo.config.optimize_ddp = False
    for block in model.visual.blocks:
        block.compile(dynamic=False, mode=mode)


def can_fuse(recipe: Recipe) -> bool:
    """Return True if `fastft.model.fused` can compute the blocks (CLIP's, without LayerScale and stochastic depth)."""
    arch, m = recipe_arch(recipe), recipe.model
    return isinstance(arch, Arch) and not arch.layer_scale and m.layer_scale is None and m.drop_path == 0


def can_compile(device: torch.device) -> bool:
    """Return True if torch.compile has a back end for the device (Triton on a GPU)."""
    return device.type == "cpu" or find_spec("triton") is not None
