"""A folder that `open_clip.create_model("local-dir:...")` loads, and beside it the part for which open_clip has no place.

`head.safetensors` holds that part. With `model.pool=patches`, logits are the tower's output plus `head.bias`.
open_clip's tower with `pool_type: avg` normalises, averages the patch tokens and multiplies by `proj`, which is the
head without its bias. `class` does the same with the class token. With `token` the tower is CLIP's own. Logits are then
its output, scaled to length 1, times `head.weight`, plus `head.bias`.

open_clip's models always have a text tower. Here it has one block of width 1 and zeros for weights: texts mean nothing
to a classifier. A recipe's `model.arch` and `model.weights` also accept these files, so you can continue fine-tuning
from them.
"""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from beton_tools.base.errors import UserError
from fastft.evaluate.trained import Trained
from fastft.export.preprocessing import short_side
from fastft.export.to_timm import refuse_new_head
from fastft.model import Arch, TimmArch
from fastft.model.classifier import PATCHES, TOKEN
from fastft.model.head_file import BIAS, WEIGHT
from fastft.model.weight_files import CLASSES, OPEN_CLIP_HEAD, save_tensors
from fastft.recipe import Recipe

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1, "proj_type": "none"}


class TowerWithHead(nn.Module):
    """open_clip's image tower followed by the head. weight: None if the tower's `proj` is the head's weight."""

    def __init__(self, tower: nn.Module, weight: Tensor | None, bias: Tensor):
        super().__init__()
        self.visual, self.weight, self.bias = tower, weight, bias

    def forward(self, images: Tensor) -> Tensor:
        output = self.visual(images)
        if self.weight is None:
            return output + self.bias
        return functional.linear(functional.normalize(output, dim=-1), self.weight, self.bias)


def write(trained: Trained, path: Path) -> None:
    """Write the folder.

    Raises UserError if the model is timm's, or if it has a relative position bias or a pooling that open_clip does not
    support.
    """
    if isinstance(trained.model.visual.arch, TimmArch):
        raise UserError("open_clip's format holds CLIP's own ViT. Export timm's models to timm, safetensors or onnx")
    refuse_new_head(trained.model.pool, "open_clip")
    ours = trained.model.state_dict()
    if any(".rel_pos_bias." in name for name in ours):
        raise UserError("open_clip's tower has no relative position bias. Export to safetensors or onnx")
    state = {name: value for name, value in ours.items() if name.startswith("visual.")}
    head = {BIAS: ours["head.bias"]}
    if trained.model.pool == TOKEN:
        head[WEIGHT] = ours["head.weight"]
    else:
        if trained.model.pool == PATCHES:
            state |= {f"visual.ln_post.{k}": ours[f"fc_norm.{k}"] for k in ("weight", "bias")}
        state |= {"visual.proj": ours["head.weight"].T}
    config = open_clip_config(trained)
    path.mkdir()
    save_tensors(path / WEIGHTS, _without_text(config["model_cfg"]) | state, {"format": "pt"})
    save_tensors(path / OPEN_CLIP_HEAD, head, {"format": "pt"})
    (path / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")


def _without_text(model_cfg: dict[str, Any]) -> dict[str, Tensor]:
    """Return zeros for every tensor outside the image tower."""
    with torch.device("meta"):
        names = open_clip.CLIP(**model_cfg).state_dict()
    return {name: torch.zeros(value.shape) for name, value in names.items() if not name.startswith("visual.")}


def load(path: Path) -> nn.Module:
    head = load_file(path / OPEN_CLIP_HEAD)
    tower = open_clip.create_model(f"local-dir:{path}").visual
    return TowerWithHead(tower, head.get(WEIGHT), head[BIAS]).eval()


def usage(trained: Trained, path: Path) -> str:
    logits = f'model.encode_image(pixels) + head["{BIAS}"]'
    if trained.model.pool == TOKEN:
        logits = (
            f'torch.nn.functional.linear(model.encode_image(pixels, normalize=True), head["{WEIGHT}"], head["{BIAS}"])'
        )
    return (
        "import json\n"
        "from pathlib import Path\n\n"
        "import open_clip\n"
        "import torch\n"
        "from safetensors.torch import load_file\n\n"
        f'folder = Path("{path.name}")\n'
        'model = open_clip.create_model(f"local-dir:{folder}").eval()  # the image tower; its text tower is empty\n'
        f'head = load_file(folder / "{OPEN_CLIP_HEAD}")\n'
        f'classes = json.loads((folder / "{CONFIG}").read_text())["{CLASSES}"]\n'
        "pixels = torch.from_numpy(images)  # images: float32 (B, 3, S, S), see Images\n"
        f"with torch.inference_mode():\n    logits = {logits}"
    )


def other_images(recipe: Recipe) -> str:
    """Say that open_clip's transform shows the model another part of an image, if the recipe crops one."""
    if short_side(recipe) == recipe.model.image_size:
        return ""
    return (
        f"open_clip's own transform does not crop to train.eval_crop_pct={recipe.train.eval_crop_pct:g}, so its predictions "
        "differ. Use preprocess from the model card instead"
    )


def open_clip_config(trained: Trained) -> dict[str, Any]:
    """Return open_clip's configuration. `embed_dim` is the number of classes except for `model.pool=token`."""
    recipe, arch = trained.recipe, trained.model.visual.arch
    assert isinstance(arch, Arch)
    clip = trained.model.pool == TOKEN
    vision: dict[str, object] = {
        "image_size": arch.image_size,
        "layers": arch.layers,
        "width": arch.width,
        "head_width": arch.width // arch.heads,
        "patch_size": arch.patch_size,
        "mlp_ratio": arch.mlp_width / arch.width,
        "norm_kwargs": {"eps": arch.norm_eps},
        "pool_type": "avg" if trained.model.pool == PATCHES else "tok",
        "final_ln_after_pool": False,
    }
    if not arch.ln_pre:
        vision["no_ln_pre"] = True
    if any(".ls_1." in name for name, _ in trained.model.named_parameters()):
        vision["ls_init_value"] = 1.0  # enables the factors, whose values are in the weights
    return {
        "model_cfg": {
            "embed_dim": arch.embed_dim if clip else recipe.data.num_classes,
            "quick_gelu": arch.quick_gelu,
            "vision_cfg": vision,
            "text_cfg": NO_TEXT,
        },
        "preprocess_cfg": {
            "mean": list(recipe.augment.mean),
            "std": list(recipe.augment.std),
            "interpolation": recipe.train.eval_interpolation,
            "resize_mode": recipe.train.eval_resize,
        },
        CLASSES: trained.outputs,
        **trained.temperature_record,
    }
