"""A small CLIP of open_clip with random weights, as the files that a recipe names."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def make_clip(folder: Path) -> open_clip.CLIP:
    """The model, saved as `clip.json` and `clip.safetensors`; every tensor is drawn away from its initial value."""
    torch.manual_seed(0)
    clip = open_clip.CLIP(**CONFIG).eval()
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        clip.logit_scale.fill_(3.0)
    (folder / "clip.json").write_text(json.dumps(CONFIG))
    save_file(
        {name: value.contiguous() for name, value in clip.state_dict().items()}, folder / "clip.safetensors"
    )
    return clip


def recipe_flags(folder: Path) -> dict[str, str]:
    """Overrides for that model."""
    return {"model.arch": str(folder / "clip.json"), "model.weights": str(folder / "clip.safetensors")}
