"""Tensors of transformers' CLIP under open_clip's names."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

PREFIX = "vision_model."  # CLIPModel's, and CLIPVisionModel's before transformers 5
MARKER = "embeddings.patch_embedding.weight"
NAMES = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.weight": "ln_pre.weight",  # spelt so in transformers
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


def is_transformers(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of transformers' `CLIPModel` or `CLIPVisionModel` (with or without projection)."""
    return MARKER in state or PREFIX + MARKER in state


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tower's tensors under open_clip's names; everything else is dropped."""
    vision = {name.removeprefix(PREFIX): value for name, value in state.items()}
    tower = {own: vision[theirs] for theirs, own in NAMES.items() if theirs in vision}
    if "visual_projection.weight" in vision:
        tower["proj"] = vision["visual_projection.weight"].T
    return tower | _blocks(vision)


def text_from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text tower's tensors under the names of open_clip's TextTransformer, and `logit_scale`; no other."""
    text = {n.removeprefix(TEXT_PREFIX): v for n, v in state.items() if n.startswith(TEXT_PREFIX)}
    tower = {own: text[theirs] for theirs, own in TEXT_NAMES.items() if theirs in text}
    if "text_projection.weight" in state:
        tower["text_projection"] = state["text_projection.weight"].T
    if "logit_scale" in state:
        tower["logit_scale"] = state["logit_scale"]
    return tower | _blocks(text)


def _blocks(tower: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a tower's blocks; query, key and value in one."""
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
    for (index, kind), found in parts.items():
        if found.keys() == set(PACKED):  # a missing one is reported as a missing tensor of the tower
            packed = torch.cat([found[part] for part in PACKED])
            blocks[f"transformer.resblocks.{index}.attn.in_proj_{kind}"] = packed
    return blocks
