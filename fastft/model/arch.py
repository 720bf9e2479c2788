"""Architectures: the image tower's numbers, read from open_clip's model configurations."""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from beton_tools.errors import UserError
from fastft.files.rules import FLAG, NUMBER_OR_NULL, OBJECT, POSITIVE, WHOLE, Rule, is_number

EPS_ONLY: Rule = (
    lambda v: isinstance(v, dict) and not set(v) - {"eps"} and all(map(is_number, v.values())),
    "{'eps': a number} or {}",
)
# how open_clip makes one vector of the tokens: the head takes the place of either; "none" and attention are other towers
POOLING: Rule = lambda v: v in ("tok", "avg"), "'tok' or 'avg'"

MODEL = {"embed_dim": WHOLE, "quick_gelu": FLAG, "vision_cfg": OBJECT}
# vision_cfg keys that the tower understands; any other key (timm towers, attentional pooling, ...) is refused
VISION = {
    "image_size": WHOLE, "layers": WHOLE, "width": WHOLE, "patch_size": WHOLE, "head_width": WHOLE, "mlp_ratio": POSITIVE,
    "ls_init_value": NUMBER_OR_NULL, "no_ln_pre": FLAG, "norm_kwargs": EPS_ONLY, "pool_type": POOLING,
    "patch_dropout": NUMBER_OR_NULL, "output_tokens": FLAG, "final_ln_after_pool": FLAG,
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
            near = " or ".join(str(size) for size in (below, below + self.patch_size) if size)
            raise UserError(
                f"image size {image_size} is not a multiple of the patch size {self.patch_size}; use {near}"
            )
        return replace(self, image_size=image_size)


def load_arch(name: str) -> Arch:
    """The architecture of an open_clip model name or of a local .json file of the same form.

    Raises:
        UserError: unknown name (with the nearest one), unreadable file, a key that is missing or holds something else, or
            a tower that is not a plain CLIP ViT.
    """
    config = load_open_clip_config(name)
    _check(name, config, MODEL, needed=("embed_dim", "vision_cfg"))
    vision = config["vision_cfg"]
    _refuse_foreign(name, vision)
    _check(name, vision, VISION, needed=("image_size", "layers", "width", "patch_size"))
    width, head_width = vision["width"], vision.get("head_width", 64)
    if width % head_width:
        raise UserError(
            f"{name}: head_width {head_width} does not divide width {width}; choose one that does"
        )
    return Arch(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        width=width,
        layers=vision["layers"],
        heads=width // head_width,
        mlp_width=int(width * vision.get("mlp_ratio", 4.0)),
        quick_gelu=bool(config.get("quick_gelu", False)),
        ln_pre=not vision.get("no_ln_pre", False),
        norm_eps=vision.get("norm_kwargs", {}).get("eps", 1e-5),
        layer_scale=vision.get("ls_init_value") is not None,
        embed_dim=config["embed_dim"],
    )


def _refuse_foreign(name: str, vision: Mapping[str, Any]) -> None:
    foreign = sorted(set(vision) - set(VISION))
    if isinstance(vision.get("layers"), list):
        foreign.append("layers of several stages")
    if foreign:
        raise UserError(f"{name} is not a plain CLIP ViT image tower ({', '.join(foreign)}); use a ViT-*")


def _check(name: str, found: Mapping[str, Any], rules: Mapping[str, Rule], needed: tuple[str, ...]) -> None:
    for key in needed:
        if key not in found:
            raise UserError(f"{name}: {key} is missing")
    for key, (fits, words) in rules.items():
        if key in found and not fits(found[key]):
            raise UserError(f"{name}: {key} is {found[key]!r}; it must be {words}")


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
