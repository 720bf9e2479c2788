"""A folder that `timm.create_model("local-dir:...", pretrained=True)` loads.

The head normalises every patch token and then averages. timm's CLIP models average first (`fc_norm`). timm's
VisionTransformer uses our order with `final_norm=True, fc_norm=False, global_pool="avg"`. timm's own models are written
unchanged.
"""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from beton_tools.base.errors import UserError
from fastft.evaluate.trained import Trained
from fastft.model import Arch, TimmArch
from fastft.model.classifier import ATTENTION, CLASS_PATCHES, PATCHES, TOKEN
from fastft.model.timm_arch import pretrained_cfg, timm_args
from fastft.model.timm_tower import TRUNK
from fastft.model.weight_files import save_tensors
from fastft.model.weights import TIMM_BLOCK_NAMES
from fastft.recipe.constants import SQUASH

NAMES = {own: theirs for theirs, own in TIMM_BLOCK_NAMES.items()}
# timm's registered CLIP towers. Other shapes are described as B/16 variants
ARCHITECTURES = {(768, 32): "vit_base_patch32", (768, 16): "vit_base_patch16", (1024, 14): "vit_large_patch14"}
CLIP_EPS = 1e-5  # these towers' LayerNorm eps. timm's default is 1e-6


def write(trained: Trained, path: Path) -> None:
    path.mkdir()
    save_tensors(path / "model.safetensors", timm_state(trained), {"format": "pt"})
    (path / "config.json").write_text(json.dumps(timm_config(trained), indent=1), encoding="utf-8")


def load(path: Path) -> nn.Module:
    return timm.create_model(f"local-dir:{path}", pretrained=True).eval()


def usage(trained: Trained, path: Path) -> str:
    return (
        "import timm\n\n"
        f'model = timm.create_model("local-dir:{path.name}", pretrained=True).eval()\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))"
    )


def refuse_new_head(pool: str, library: str) -> None:
    """Raise UserError for heads that only fastft builds."""
    heads = {CLASS_PATCHES: "head over class token and patches", ATTENTION: "pooling by one trained query per head"}
    if pool in heads:
        raise UserError(f"{library} has no {heads[pool]} (model.pool={pool}). Export to safetensors, onnx or torch")


def timm_state(trained: Trained) -> dict[str, Tensor]:
    """Return the model's tensors under the names that timm's VisionTransformer uses.

    Raises UserError for a relative position bias or a pooling that timm's class does not support.
    """
    ours = trained.model.state_dict()
    refuse_new_head(trained.model.pool, "timm")
    if isinstance(trained.model.visual.arch, TimmArch):
        return {name.removeprefix(TRUNK): value for name, value in ours.items()}
    if trained.model.pool == TOKEN:
        raise UserError(
            "timm's VisionTransformer has no embedding of length 1 (model.pool=token). Export to open_clip, safetensors or onnx"
        )
    if any(".rel_pos_bias." in name for name in ours):
        raise UserError("timm's VisionTransformer has no relative position bias. Export to safetensors or onnx")
    state = {
        "cls_token": ours["visual.class_embedding"].view(1, 1, -1),
        "pos_embed": ours["visual.positional_embedding"].unsqueeze(0),
        "patch_embed.proj.weight": ours["visual.conv1.weight"],
    }
    if "visual.ln_pre.weight" in ours:
        state |= {f"norm_pre.{k}": ours[f"visual.ln_pre.{k}"] for k in ("weight", "bias")}
    else:  # timm ties the patch embedding's bias to this
        state["patch_embed.proj.bias"] = torch.zeros_like(ours["visual.class_embedding"])
    for name, value in ours.items():
        if name.startswith("visual.transformer.resblocks."):
            _, _, _, i, part = name.split(".", 4)
            state[f"blocks.{i}.{NAMES[part]}"] = value
    norm = "fc_norm" if trained.model.pool == PATCHES else "visual.ln_post"
    for theirs, own in (("norm", norm), ("head", "head")):
        state |= {f"{theirs}.{k}": ours[f"{own}.{k}"] for k in ("weight", "bias")}
    return state


def timm_config(trained: Trained) -> dict[str, Any]:
    """Return config.json as model hubs expect it: the model's arguments and its preprocessing."""
    recipe, arch = trained.recipe, trained.model.visual.arch
    size = [3, arch.image_size, arch.image_size]
    model, names = _of_timm(arch) if isinstance(arch, TimmArch) else _of_clip(trained, arch)
    return {
        **model,
        "num_classes": recipe.data.num_classes,
        "label_names": trained.classes,
        **trained.temperature_record,
        "pretrained_cfg": {
            "num_classes": recipe.data.num_classes,
            "input_size": size,
            "interpolation": recipe.train.eval_interpolation,
            "crop_pct": recipe.train.eval_crop_pct,
            "crop_mode": "squash" if recipe.train.eval_resize == SQUASH else "center",
            "mean": list(recipe.augment.mean),
            "std": list(recipe.augment.std),
            **names,
        },
    }


def _of_clip(trained: Trained, arch: Arch) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the model's arguments and its pretrained_cfg entries, for fastft's own tower."""
    model = {"architecture": _architecture(arch), "model_args": _model_args(trained, arch)}
    return model, {"fixed_input_size": True, "first_conv": "patch_embed.proj", "classifier": "head"}


def _of_timm(arch: TimmArch) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the same values as `_of_clip`, for a timm model."""
    cfg = pretrained_cfg(arch.timm)
    model = {"architecture": arch.timm.partition(".")[0], "model_args": timm_args(arch.timm, arch.image_size)}
    return model, {key: getattr(cfg, key) for key in ("fixed_input_size", "first_conv", "classifier")}


def _architecture(arch: Arch) -> str:
    base = ARCHITECTURES.get((arch.width, arch.patch_size), "vit_base_patch16")
    return base + ("_clip_quickgelu_224" if arch.quick_gelu else "_clip_224")


def _model_args(trained: Trained, arch: Arch) -> dict[str, Any]:
    args: dict[str, Any] = {
        "img_size": arch.image_size,
        "patch_size": arch.patch_size,
        "embed_dim": arch.width,
        "depth": arch.layers,
        "num_heads": arch.heads,
        "mlp_ratio": arch.mlp_width / arch.width,
        "pre_norm": arch.ln_pre,
        "global_pool": "avg" if trained.model.pool == PATCHES else "token",
        "final_norm": True,
        "fc_norm": False,
    }
    if any(".ls_1." in name for name, _ in trained.model.named_parameters()):
        args["init_values"] = 1.0  # enables the factors, whose values are in the weights
    if arch.norm_eps != CLIP_EPS:
        args["norm_layer"] = "layernorm"  # timm's name for a LayerNorm with eps 1e-6
    return args
