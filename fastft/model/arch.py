"""Architectures: the image tower's numbers, read from open_clip's model configurations."""

import importlib.util
import json
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from beton_tools.errors import UserError

# vision_cfg keys that the tower understands; any other key (timm towers, attentional pooling, ...) is refused
UNDERSTOOD = {
    "image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "ls_init_value", "no_ln_pre",
    "norm_kwargs", "pool_type", "patch_dropout", "output_tokens", "final_ln_after_pool",
}  # fmt: skip


@dataclass(frozen=True)
class Arch:
    """A plain vision transformer with a class token and learnt absolute positions."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    quick_gelu: bool
    ln_pre: bool
    norm_eps: float
    layer_scale: bool  # the pretrained weights hold LayerScale factors
    embed_dim: int  # of the projection that the classifier drops

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        return self.grid**2 + 1

    def at(self, image_size: int) -> "Arch":
        if image_size % self.patch_size:
            below = image_size - image_size % self.patch_size
            raise UserError(
                f"image size {image_size} is not a multiple of the patch size {self.patch_size}; "
                f"use {max(below, self.patch_size)} or {below + self.patch_size}"
            )
        return replace(self, image_size=image_size)


def load_arch(name: str) -> Arch:
    """The architecture of an open_clip model name or of a local .json file of the same form.

    Raises:
        UserError: unknown name (with the nearest one), unreadable file, or a tower that is not a plain CLIP ViT.
    """
    config = load_open_clip_config(name)
    vision = config.get("vision_cfg", {})
    foreign = sorted(set(vision) - UNDERSTOOD)
    if foreign or not isinstance(vision.get("layers"), int):
        raise UserError(
            f"{name} is not a plain CLIP ViT image tower ({', '.join(foreign) or 'no layers'}); use a ViT-*"
        )
    width = vision["width"]
    return Arch(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        width=width,
        layers=vision["layers"],
        heads=width // vision.get("head_width", 64),
        mlp_width=int(width * vision.get("mlp_ratio", 4.0)),
        quick_gelu=bool(config.get("quick_gelu", False)),
        ln_pre=not vision.get("no_ln_pre", False),
        norm_eps=vision.get("norm_kwargs", {}).get("eps", 1e-5),
        layer_scale=vision.get("ls_init_value") is not None,
        embed_dim=config["embed_dim"],
    )


def load_open_clip_config(name: str) -> dict[str, Any]:
    """open_clip's model configuration; its JSON files are read where they lie, importing open_clip takes seconds."""
    if name.endswith(".json"):
        path = Path(name)
    else:
        path = _open_clip_configs() / f"{name.replace('/', '-')}.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = get_close_matches(path.stem, [p.stem for p in path.parent.glob("*.json")], n=1)
        raise UserError(
            f"model.arch '{name}' is not known" + (f"; did you mean '{near[0]}'?" if near else "")
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"model configuration {path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"model configuration {path} must be a JSON object with a vision_cfg")
    return config


def _open_clip_configs() -> Path:
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise UserError("open_clip is not installed; run: pip install open_clip_torch")
    return Path(spec.origin).parent / "model_configs"
