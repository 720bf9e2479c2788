"""Load pretrained weights into fastft's own tower, from open_clip tags, timm names, files and folders."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from beton_tools.base.errors import UserError, first_sentence
from beton_tools.base.user_files import check_user_file, expand_home
from beton_tools.read.class_list import Classes
from fastft.model.arch import Arch
from fastft.model.attention_pool import QUERIES
from fastft.model.classifier import ATTENTION, CLASS, CLASS_PATCHES, PATCHES, TOKEN
from fastft.model.timm_arch import classifier_names, clip_numbers, pretrained_tags
from fastft.model.tower import PROJECTION, Tower, resize_positions
from fastft.model.weight_files import (
    WEIGHTS,
    WeightFolder,
    find_weight_folder,
    is_torchscript_file,
    open_weight_folder,
    read_weights,
    stored_classes,
)
from fastft.recipe.constants import TIMM
from fastft.recipe.hub import HUB, hub_failure
from fastft.recipe.open_clip_files import open_clip_tags

NOT_TENSORS_OF_A_TOWER = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's files
PRETRAINED = "timm"  # model.weights for the tag in the model's name, or timm's default
NO_MODULES: Mapping[str, nn.Module] = {}
TIMM_PREFIX = "visual.trunk."  # prefix for timm's models in fastft's checkpoints, as in open_clip's


def load_tower_weights(
    tower: Tower, weights: str, arch_name: str, pooling: Mapping[str, nn.Module] = NO_MODULES
) -> None:
    """Fill `tower`, interpolating the positions to its grid.

    Args:
        weights: an open_clip pretrained tag, 'timm/NAME', a file, an open_clip, timm or transformers folder, or
            'hf-hub:ORG/NAME'.
        pooling: the classifier's modules between tower and head, by name, which fine-tuned fastft weights contain too.

    Raises:
        UserError: the tag or file is unknown, the download is impossible, the file is damaged, or the weights belong to
            another architecture.
    """
    folder = find_weight_folder(weights)
    whole = _read_clip_state(weights, arch_name, folder)
    state = _visual_state(weights, whole)
    own = tower.state_dict()
    state = {name: value for name, value in state.items() if name in own or not name.startswith(PROJECTION)}
    _check_tensors(state, weights)
    _check_same_tower(tower, state, weights, arch_name, folder)
    state["positional_embedding"] = interpolate_positions(state["positional_embedding"], tower.arch, weights)
    missing = [name for name in own if name not in state and name.startswith(PROJECTION)]
    if missing:
        pool = "token" if "proj" in own else "class or class+patches"
        raise UserError(
            f"weights {weights} have no {missing[0]}, which --model.pool={pool} needs. Use CLIP's own weights"
        )
    error = f"weights {weights} do not fit {arch_name}"
    if "ln_pre.weight" in own and "ln_pre.weight" not in state and is_timm_vit(whole):
        raise UserError(f"{error}: they have no norm_pre. A timm model needs --model.arch=timm/NAME")
    # parts that the recipe adds to the pretrained tower start fresh
    load_fitting(tower, state, error, lambda name: ".rel_pos_bias." in name or ".ls_" in name)
    for name, module in pooling.items():
        prefix = f"{name}."
        stored = {key.removeprefix(prefix): value for key, value in whole.items() if key.startswith(prefix)}
        if stored:
            load_fitting(module, stored, error, lambda key: False)


def load_fitting(module: nn.Module, state: Mapping[str, Tensor], error: str, optional: Callable[[str], bool]) -> None:
    """Load a state dict. error: the message's beginning. optional: returns True for names that may be missing.

    Raises UserError if a tensor has another shape, is missing or unexpected, or contains NaN or Inf.
    """
    own = module.state_dict()
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise UserError(f"{error}: {broken[0]} contains NaN or Inf. Check model.weights, download or write them again")
    for name, value in state.items():
        if name in own and value.shape != own[name].shape:
            shapes = f"{tuple(value.shape)} in the file, {tuple(own[name].shape)} in the model"
            raise UserError(f"{error}: {name} is {shapes}. Check model.arch")
    missing = [name for name in own if name not in state and not optional(name)]
    unexpected = [name for name in state if name not in own]
    if missing or unexpected:
        raise UserError(f"{error}: missing {missing[:3]}, unexpected {unexpected[:3]}. Check model.arch")
    module.load_state_dict(state, strict=False)


def name_weights(weights: str, name: str) -> str:
    """Resolve `model.weights` for timm's model: 'timm/NAME.TAG' for 'timm' or a tag, and anything else unchanged.

    Raises UserError if timm has no weights, or for something else that is no file or folder.
    """
    if weights.startswith((HUB, TIMM)) or (path := expand_home(weights)).suffix or path.exists():
        return weights
    model = name.partition(".")[0]
    known = pretrained_tags(model)
    if not known:
        raise UserError(f"timm has no weights for {name}. Set model.weights to a file, or to random")
    if weights not in (PRETRAINED, *known):
        raise UserError(unknown_tag(weights, TIMM + name, [PRETRAINED, *known]))
    return TIMM + (name if weights == PRETRAINED else f"{model}.{weights}")


def check_weights(weights: str, arch_name: str) -> None:
    """Refuse weights that name no file, folder, repository or pretrained tag. Download the last two to their cache.

    Raises the same errors as `load_tower_weights`.
    """
    if weights.startswith((HUB, TIMM)):
        find_weight_folder(weights)
        return
    path = _as_file(weights)
    if path is None:
        _fetch_tag(weights, arch_name)
    elif not path.is_dir():
        check_user_file(path, WEIGHTS)


def read_visual_state(weights: str, arch_name: str, folder: WeightFolder | None = None) -> dict[str, Tensor]:
    """Read the image tower's tensors under open_clip's names, without the `visual.` prefix.

    folder: the folder that `weights` names.
    """
    return _visual_state(weights, _read_clip_state(weights, arch_name, folder))


def _visual_state(weights: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    if is_transformers(state):
        state = from_transformers(state)
    elif is_timm_vit(state):
        state = from_timm(state)
    visual = {n.removeprefix("visual."): v for n, v in state.items() if n.startswith("visual.")}
    visual = visual or state
    if "positional_embedding" not in visual or "conv1.weight" not in visual:
        other = ". A timm model needs --model.arch=timm/NAME" if "patch_embed.proj.weight" in visual else ""
        raise UserError(
            f"{weights} holds no CLIP image tower (no visual.conv1.weight). Use OpenAI or open_clip weights{other}"
        )
    return visual


@dataclass(frozen=True)
class TrainedHead:
    """The head in fine-tuned weights.

    weight_KD, bias_K: float32. pool: what the head reads, as `model.pool`, or "timm" for timm's models. classes: names by
    row. They are None if the weights do not name them, as with timm's, whose heads are over ImageNet class sets.
    """

    weight_KD: Tensor
    bias_K: Tensor
    pool: str
    classes: Classes | None


def read_trained_head(weights: str, arch_name: str) -> TrainedHead:
    """Read the head in timm's weights, or in a fastft checkpoint or export.

    Raises the same errors as `load_tower_weights`, and UserError if there is no head.
    """
    folder = find_weight_folder(weights)
    if arch_name.startswith(TIMM):
        stored = read_weights(folder or expand_home(weights))
        state = {key.removeprefix(TIMM_PREFIX): value for key, value in stored.items()}
        name, patches, pool = classifier_names(arch_name.removeprefix(TIMM))[0], "patch_embed.proj.weight", "timm"
    else:
        state = _read_clip_state(weights, arch_name, folder)
        name, patches = "head", "visual.conv1.weight"
        pool = PATCHES if f"{HEAD_NORM}weight" in state else TOKEN if "visual.proj" in state else CLASS
    weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
    if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise UserError(
            f"weights {weights} have no head. Set --model.head_init=probe, or use fine-tuned weights from timm or fastft"
        )
    if patches in state and weight.shape[1] == 2 * len(state[patches]):
        pool = CLASS_PATCHES
    elif QUERIES in state:
        pool = ATTENTION
    if folder is None:
        classes = stored_classes(expand_home(weights))
    else:
        classes = Classes.of(folder.classes) if folder.classes else None
    return TrainedHead(weight.float(), bias.float(), pool, classes if classes and len(classes) <= len(bias) else None)


def read_text_state(weights: str, arch_name: str) -> dict[str, Tensor]:
    """Read the text tower's tensors under the names in open_clip's TextTransformer, and `logit_scale`, all in fp32.

    Raises the same errors as `load_tower_weights`, and UserError if there is no text tower.
    """
    state = _read_clip_state(weights, arch_name, find_weight_folder(weights))
    if is_transformers(state):
        text = text_from_transformers(state)
    else:
        others = ("visual.", *NOT_TENSORS_OF_A_TOWER)
        text = {name.removeprefix("text."): v for name, v in state.items() if not name.startswith(others)}
    if "token_embedding.weight" not in text or "logit_scale" not in text:
        raise UserError(
            f"{weights} holds no CLIP text tower (no token_embedding.weight and logit_scale). Use CLIP's weights"
        )
    return {name: value.float() for name, value in text.items()}


def _read_clip_state(weights: str, arch_name: str, folder: WeightFolder | None) -> dict[str, Tensor]:
    """Read every tensor from a tag, a file or a folder, without the wrappers' prefixes.

    fastft's exports use the names in its checkpoints: `fc_norm.` if the head reads patch tokens, `head.`, and no `proj`
    that is a head.
    """
    if folder is None:
        return read_weights(_as_file(weights) or _fetch_tag(weights, arch_name))
    if folder.timm_name is not None and folder.library != "timm":
        raise UserError(f"{weights} holds timm's {folder.timm_name}. Set --model.arch=timm/{folder.timm_name}")
    state = read_weights(folder)
    if folder.library == "open_clip" and "head.bias" in state and "head.weight" not in state and "visual.proj" in state:
        state["head.weight"] = state.pop("visual.proj").T
        if folder.averages:
            state = {name.replace("visual.ln_post.", HEAD_NORM): value for name, value in state.items()}
    elif folder.library == "timm" and folder.averages:
        state = {HEAD_NORM + n.removeprefix("norm.") if n.startswith("norm.") else n: v for n, v in state.items()}
    return state


def interpolate_positions(positions_ND: Tensor, arch: Arch, source: str = "the weights") -> Tensor:
    """Resize positions to the tower's grid, as `resize_positions`.

    source: the weights' name in the error message. Raises UserError if the positions are not for a class token and a
    square grid.
    """
    count = positions_ND.shape[0]
    old = math.isqrt(max(0, count - 1))
    if old < 1 or old * old != count - 1:
        raise UserError(f"{source}: {count} positions are not a square grid and a class token. Use other weights")
    return resize_positions(positions_ND, arch.grid)


def _as_file(weights: str) -> Path | None:
    """Return a file's path, even if the file does not exist, or None for a tag."""
    path = expand_home(weights)
    return path if path.suffix or path.exists() else None


def check_activation(weights: str, arch_name: str, quick_gelu: bool, folder: WeightFolder | None = None) -> None:
    """Refuse weights trained with a different GELU from the tower's, if this is known without a download.

    Tags and timm's names are listed with their GELU, folders state it, and TorchScript files are OpenAI's. folder: the
    folder that `weights` names. Raises UserError if the GELU differs, or for an unknown tag or name.
    """
    trained = _trained_with_quick_gelu(weights, arch_name, folder)
    if trained is True and not quick_gelu:
        raise UserError(
            f"weights {weights} were trained with QuickGELU. Set model.arch to the name that ends in -quickgelu"
        )
    if trained is False and quick_gelu:
        raise UserError(f"weights {weights} were trained with GELU. Set model.arch to the name without -quickgelu")


def _trained_with_quick_gelu(weights: str, arch_name: str, folder: WeightFolder | None) -> bool | None:
    """Return whether the weights were trained with QuickGELU, or None if this is not known."""
    if weights.startswith(TIMM):
        return clip_numbers(weights.removeprefix(TIMM))[0]
    path = None if weights.startswith(HUB) else _as_file(weights)
    if folder is None and path is not None:
        folder = open_weight_folder(path) if path.is_dir() else None
    if folder is not None:
        return folder.quick_gelu or (folder.timm_name is not None and clip_numbers(folder.timm_name)[0])
    if weights.startswith(HUB):
        return None
    if path is not None:
        return is_torchscript_file(path) or None
    if not open_clip_tags().list_pretrained_tags_by_model(arch_name):  # a .json file
        return None
    return _describe_tag(weights, arch_name).get("quick_gelu") or None


def _describe_tag(tag: str, arch_name: str) -> Any:
    """Return open_clip's configuration for a pretrained tag. Raises UserError if there is no such tag."""
    known = open_clip_tags().list_pretrained_tags_by_model(arch_name)
    if tag not in known:
        raise UserError(unknown_tag(tag, arch_name, known))
    return open_clip_tags().get_pretrained_cfg(arch_name, tag)


def _fetch_tag(tag: str, arch_name: str) -> Path:
    described, failure = _describe_tag(tag, arch_name), hub_failure()
    try:
        return Path(open_clip_tags().download_pretrained(described))
    except Exception as error:
        raise UserError(
            f"weights '{tag}' of {arch_name} could not be downloaded ({failure or first_sentence(error)}). "
            "Download them elsewhere and set model.weights to the file"
        ) from None


def unknown_tag(tag: str, arch_name: str, known: Sequence[str]) -> str:
    """Return the message for a `model.weights` value that names nothing, with the nearest tags."""
    near = get_close_matches(tag, known, n=3)
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"Tags: {', '.join(known) or 'none'}"
    return f"model.weights '{tag}' is neither a file nor a pretrained tag of {arch_name}. {hint}"


def _check_tensors(state: Mapping[str, Tensor], weights: str) -> None:
    for name, value in state.items():
        if not value.is_floating_point():
            raise UserError(f"weights {weights}: {name} is not a floating-point tensor. Use other weights")
    for name, dimensions in (("conv1.weight", 4), ("positional_embedding", 2)):
        if state[name].ndim != dimensions:
            raise UserError(
                f"weights {weights}: {name} has {state[name].ndim} dimensions, expected {dimensions}. Use other weights"
            )


def _check_same_tower(
    tower: Tower, state: Mapping[str, Tensor], weights: str, arch_name: str, folder: WeightFolder | None
) -> None:
    """Refuse weights with another activation, width, patch size, block count or head count, and name the difference."""
    arch = tower.arch
    check_activation(weights, arch_name, arch.quick_gelu, folder)
    width, _, patch, _ = state["conv1.weight"].shape
    layers = len({name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")})
    if (width, patch, layers) != (arch.width, arch.patch_size, arch.layers):
        raise UserError(
            f"weights {weights} have width {width}, patch {patch} and {layers} blocks, but {arch_name} has {arch.width}, "
            f"{arch.patch_size} and {arch.layers}. Set model.arch to the weights' architecture"
        )
    heads = None if folder is None else folder.heads
    if heads is None and folder is not None and folder.timm_name:
        heads = clip_numbers(folder.timm_name)[1]
    if heads not in (None, arch.heads):
        raise UserError(
            f"weights {weights} have {heads} attention heads, but {arch_name} has {arch.heads}. Set model.arch to the "
            "architecture of the weights"
        )


PREFIX = "vision_model."  # CLIPModel's, and CLIPVisionModel's before transformers 5
MARKER = "embeddings.patch_embedding.weight"
NAMES = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.weight": "ln_pre.weight",  # transformers spells it this way
    "pre_layrnorm.bias": "ln_pre.bias",
    "post_layernorm.weight": "ln_post.weight",
    "post_layernorm.bias": "ln_post.bias",
}
TEXT_PREFIX = "text_model."
TEXT_NAMES = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
BLOCK_NAMES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
BLOCK = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
PACKED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


HEAD_NORM = "fc_norm."  # the classifier's norm, before the mean over patch tokens
TIMM_MARKERS = ("cls_token", "pos_embed", "patch_embed.proj.weight")  # present in timm's ViTs with a class token
TIMM_NAMES = {
    "cls_token": "class_embedding",
    "pos_embed": "positional_embedding",
    "patch_embed.proj.weight": "conv1.weight",
    "norm_pre.weight": "ln_pre.weight",
    "norm_pre.bias": "ln_pre.bias",
    "norm.weight": "ln_post.weight",
    "norm.bias": "ln_post.bias",
}
TIMM_BLOCK_NAMES = {
    "norm1.weight": "ln_1.weight",
    "norm1.bias": "ln_1.bias",
    "attn.qkv.weight": "attn.in_proj_weight",
    "attn.qkv.bias": "attn.in_proj_bias",
    "attn.proj.weight": "attn.out_proj.weight",
    "attn.proj.bias": "attn.out_proj.bias",
    "ls1.gamma": "ls_1.gamma",
    "norm2.weight": "ln_2.weight",
    "norm2.bias": "ln_2.bias",
    "mlp.fc1.weight": "mlp.c_fc.weight",
    "mlp.fc1.bias": "mlp.c_fc.bias",
    "mlp.fc2.weight": "mlp.c_proj.weight",
    "mlp.fc2.bias": "mlp.c_proj.bias",
    "ls2.gamma": "ls_2.gamma",
}
TIMM_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
TIMM_HEAD = ("head.", "fc_norm.")


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the image tower's tensors under open_clip's names, without the head. Unknown names stay."""
    tower: dict[str, Tensor] = {}
    for name, value in state.items():
        if (match := TIMM_BLOCK.fullmatch(name)) is not None:
            tower[f"transformer.resblocks.{match[1]}.{TIMM_BLOCK_NAMES.get(match[2], match[2])}"] = value
        elif not name.startswith(TIMM_HEAD):
            # (1, 1, D) and (1, N, D) in timm
            tower[TIMM_NAMES.get(name, name)] = value.squeeze() if name in ("cls_token", "pos_embed") else value
    bias_D = tower.pop("patch_embed.proj.bias", None)  # CLIP's ViTs do not have it
    if bias_D is not None and (positions_ND := tower["positional_embedding"]).shape[-1:] == bias_D.shape:
        tower["positional_embedding"] = torch.cat([positions_ND[:1], positions_ND[1:] + bias_D])
    return tower


def is_timm_vit(state: Mapping[str, Tensor]) -> bool:
    """Return True if a state dict belongs to timm's ViT with a class token."""
    return all(name in state for name in TIMM_MARKERS)


def is_transformers(state: Mapping[str, Tensor]) -> bool:
    """Return True for a state dict from transformers' `CLIPModel` or `CLIPVisionModel` (with or without projection)."""
    return MARKER in state or PREFIX + MARKER in state


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the image tower's tensors under open_clip's names. Everything else is dropped."""
    vision = {name.removeprefix(PREFIX): value for name, value in state.items()}
    tower = {own: vision[theirs] for theirs, own in NAMES.items() if theirs in vision}
    if "visual_projection.weight" in vision:
        tower["proj"] = vision["visual_projection.weight"].T
    return tower | _blocks(vision)


def text_from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return only the text tower's tensors, under the names in open_clip's TextTransformer, and `logit_scale`."""
    text = {n.removeprefix(TEXT_PREFIX): v for n, v in state.items() if n.startswith(TEXT_PREFIX)}
    tower = {own: text[theirs] for theirs, own in TEXT_NAMES.items() if theirs in text}
    if "text_projection.weight" in state:
        tower["text_projection"] = state["text_projection.weight"].T
    if "logit_scale" in state:
        tower["logit_scale"] = state["logit_scale"]
    return tower | _blocks(text)


def _blocks(tower: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors in a tower's blocks, with query, key and value packed into one."""
    blocks: dict[str, Tensor] = {}
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, value in tower.items():
        if (match := BLOCK.fullmatch(name)) is None:
            continue
        index, layer, kind = match.groups()
        if layer in PACKED:
            parts.setdefault((index, kind), {})[layer] = value
        elif layer in BLOCK_NAMES:
            blocks[f"transformer.resblocks.{index}.{BLOCK_NAMES[layer]}.{kind}"] = value
    for (index, kind), by_layer in parts.items():
        if by_layer.keys() == set(PACKED):  # a missing one is reported as a missing tensor in the tower
            packed = torch.cat([by_layer[layer] for layer in PACKED])
            blocks[f"transformer.resblocks.{index}.attn.in_proj_{kind}"] = packed
    return blocks
