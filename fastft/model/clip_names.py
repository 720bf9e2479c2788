"""Names of CLIP's image tower in transformers, under open_clip's names."""

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
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, value in vision.items():
        if (match := BLOCK.fullmatch(name)) is None:
            continue
        index, layer, kind = match.groups()
        if layer in PACKED:
            parts.setdefault((index, kind), {})[layer] = value
        elif layer in BLOCK_NAMES:
            tower[f"transformer.resblocks.{index}.{BLOCK_NAMES[layer]}.{kind}"] = value
    for (index, kind), found in parts.items():
        if found.keys() == set(PACKED):  # a missing one is reported as a missing tensor of the tower
            tower[f"transformer.resblocks.{index}.attn.in_proj_{kind}"] = torch.cat(
                [found[part] for part in PACKED]
            )
    return tower
