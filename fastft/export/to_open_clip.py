"""A folder with open_clip's image tower, and beside its tensors the parts for which open_clip has no place.

With `model.pool=patches`, logits are the tower's output plus `head.bias`. open_clip's tower with `pool_type: avg`
normalises, averages the patch tokens and multiplies by `proj`, which is the head without its bias. `class` does the
same with the class token. With `token` the tower is CLIP's own. Logits are then its output, scaled to length 1, times
`head.weight`, plus `head.bias`.

A recipe's `model.arch` and `model.weights` also accept these files, so you can continue fine-tuning from them.
"""

import json
from pathlib import Path

from open_clip.model import CLIPVisionCfg, _build_vision_tower  # the only builder from a configuration
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from beton_tools.base.errors import UserError
from fastft.evaluate.trained import Trained
from fastft.model import Arch, TimmArch
from fastft.model.classifier import CLASS_PATCHES, PATCHES, TOKEN
from fastft.model.weight_files import CLASSES, save_tensors

CONFIG, WEIGHTS, WEIGHT, BIAS = ("open_clip_config.json", "open_clip_model.safetensors", "head.weight", "head.bias")


class TowerWithHead(nn.Module):
    """open_clip's tower followed by the head. weight: None if the tower's `proj` is the head's weight."""

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
    if trained.model.pool == CLASS_PATCHES:
        raise UserError(
            "open_clip has no head over class token and patches (model.pool=class+patches). Export to safetensors or onnx"
        )
    ours = trained.model.state_dict()
    if any(".rel_pos_bias." in name for name in ours):
        raise UserError("open_clip's tower has no relative position bias. Export to safetensors or onnx")
    state = {name: value for name, value in ours.items() if name.startswith("visual.")}
    if trained.model.pool == TOKEN:
        state |= {WEIGHT: ours["head.weight"]}
    else:
        if trained.model.pool == PATCHES:
            state |= {f"visual.ln_post.{k}": ours[f"fc_norm.{k}"] for k in ("weight", "bias")}
        state |= {"visual.proj": ours["head.weight"].T}
    state |= {BIAS: ours["head.bias"]}
    path.mkdir()
    save_tensors(path / WEIGHTS, state, {"format": "pt"})
    (path / CONFIG).write_text(json.dumps(open_clip_config(trained), indent=1), encoding="utf-8")


def load(path: Path) -> nn.Module:
    config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    tower = _build_vision_tower(config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]), config["quick_gelu"])
    state = load_file(path / WEIGHTS)
    weight, bias = state.pop(WEIGHT, None), state.pop(BIAS)
    tower.load_state_dict({name.removeprefix("visual."): value for name, value in state.items()})
    return TowerWithHead(tower, weight, bias).eval()


def usage(trained: Trained, path: Path) -> str:
    return (
        "from pathlib import Path\n\n"
        "from fastft.export.to_open_clip import load  # builds open_clip's own tower\n\n"
        f'model = load(Path("{path.name}"))  # the tower and its head'
    )


def open_clip_config(trained: Trained) -> dict[str, object]:
    """Return open_clip's model configuration, with embed_dim = number of classes except for `model.pool=token`."""
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
        "embed_dim": arch.embed_dim if clip else recipe.data.num_classes,
        "quick_gelu": arch.quick_gelu,
        "vision_cfg": vision,
        CLASSES: trained.outputs,
        **trained.temperature_record,
        "preprocess_cfg": {
            "mean": list(recipe.augment.mean),
            "std": list(recipe.augment.std),
            "interpolation": recipe.train.eval_interpolation,
            "resize_mode": recipe.train.eval_resize,
        },
    }
