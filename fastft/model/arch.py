"""Architectures: the image tower's numbers, read from open_clip's model configurations."""

import json
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, field

from beton_tools.base.errors import UserError, first_sentence
from beton_tools.base.typed_json import Document, Number, check
from beton_tools.base.user_files import read_regular
from fastft.recipe.open_clip_files import open_clip_folder

MAX_CONFIG_BYTES = 1 << 20  # open_clip's largest configuration takes 2 KB
STATE, MAX_STATE_BYTES = "state.json", 256 << 20  # in fastft's checkpoints, with evaluations and class names
# Limits far above every published tower, so that a mistake cannot fill the memory. The largest plain CLIP ViT in open_clip,
# ViT-e-14, has 3.8e9 parameters and 56 layers. 128 x 128 patches of 16 px make a 2048 px image.
MAX_PARAMETERS, MAX_LAYERS, MAX_GRID = 5e9, 512, 128

Size = Annotated[int, Meta(ge=1, le=1 << 20)]


class _NormOptions(Document, forbid_unknown_fields=True):
    eps: Number = 1e-5


class _Vision(Document):
    """The vision_cfg keys that the tower supports. Any other key (timm towers, attentional pooling, ...) is refused."""

    image_size: Size
    layers: Size
    width: Size
    patch_size: Size
    head_width: Size = 64
    mlp_ratio: Annotated[float, Meta(gt=0, le=64)] = 4.0
    ls_init_value: Number | None = None
    no_ln_pre: bool = False
    norm_kwargs: _NormOptions = field(default_factory=_NormOptions)
    # How open_clip pools the tokens. The classifier's head replaces both. "none" and attentional pooling need other towers.
    pool_type: Literal["tok", "avg"] = "tok"
    patch_dropout: Number | None = None
    output_tokens: bool = False
    final_ln_after_pool: bool = False


class _Model(Document):
    embed_dim: Size
    vision_cfg: _Vision
    quick_gelu: bool = False


@dataclass(frozen=True)
class Arch:
    """A plain vision transformer with a class token and learnt absolute positions.

    Raises:
        UserError: it exceeds MAX_PARAMETERS, MAX_LAYERS or MAX_GRID.
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    quick_gelu: bool
    ln_pre: bool
    norm_eps: float
    layer_scale: bool  # whether the pretrained weights hold LayerScale factors
    embed_dim: int  # the projection's output width. The classifier drops the projection

    def __post_init__(self) -> None:
        too_many = self.parameters > MAX_PARAMETERS
        limits = {
            f"{MAX_GRID} patches along a side. Use a smaller image size": self.grid > MAX_GRID,
            f"{MAX_LAYERS} layers. Check the architecture": self.layers > MAX_LAYERS,
            f"{MAX_PARAMETERS:.0e} parameters. Check width, layers and mlp_ratio": too_many,
        }
        for limit, exceeded in limits.items():
            if exceeded:
                raise UserError(f"the architecture has more than {limit}")

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        return self.grid**2 + 1

    @property
    def parameters(self) -> int:
        """Count the parameters in matrices and positions. Biases and norms (0.1 %) are left out."""
        block = self.width * (4 * self.width + 2 * self.mlp_width)
        return self.width * (3 * self.patch_size**2 + self.tokens) + self.layers * block

    def at(self, image_size: int) -> "Arch":
        """Return the same tower for another image size.

        Raises:
            UserError: the size is not a multiple of the patch size, or it is too large.
        """
        check_image_size(image_size, self.patch_size)
        return replace(self, image_size=image_size)


def check_image_size(image_size: int, patch_size: int) -> None:
    """Raise UserError, with the nearest sizes, if the image size is not a multiple of the patch size."""
    if image_size % patch_size:
        below = image_size - image_size % patch_size
        near = " or ".join(str(size) for size in (below, below + patch_size) if size)
        raise UserError(f"image size {image_size} is not a multiple of the patch size {patch_size}. Use {near}")


def load_open_clip_arch(name: str) -> Arch:
    """Return the architecture for an open_clip model name, a local .json file in open_clip's form, or a checkpoint folder.

    Raises:
        UserError: the name is unknown (the message has the nearest one), the file is unreadable, a key is missing or
            has a wrong value, or the tower is not a plain CLIP ViT or is too large.
    """
    if (stored := _stored_arch(name)) is not None:
        return stored
    config = load_open_clip_config(name)
    try:
        _refuse_foreign(name, config.get("vision_cfg"))
        model = check(name, config, _Model)
    except ValueError as error:
        raise UserError(f"{error}. See open_clip's configurations for examples") from None
    vision = model.vision_cfg
    width, head_width = vision.width, vision.head_width
    if width % head_width:
        raise UserError(f"{name}: head_width {head_width} does not divide width {width}. Choose one that does")
    try:
        return Arch(
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            width=width,
            layers=vision.layers,
            heads=width // head_width,
            mlp_width=int(width * vision.mlp_ratio),
            quick_gelu=model.quick_gelu,
            ln_pre=not vision.no_ln_pre,
            norm_eps=vision.norm_kwargs.eps,
            layer_scale=vision.ls_init_value is not None,
            embed_dim=model.embed_dim,
        )
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def refuse_pool_without_class_token(name: str) -> None:
    """Raise UserError if the open_clip tower with this name does not take its embedding from the class token."""
    pooling = "tok" if is_checkpoint_arch(name) else load_open_clip_config(name)["vision_cfg"].get("pool_type", "tok")
    if pooling != "tok":
        raise UserError(
            f"{name} pools its tokens by '{pooling}', not by the class token. Use --model.pool=patches or another --model.arch"
        )


def _refuse_foreign(name: str, vision: object) -> None:
    if not isinstance(vision, dict):
        return
    if isinstance(vision.get("timm_model_name"), str):
        raise UserError(f"{name} has timm's image tower. Set --model.arch=timm/{vision['timm_model_name']}")
    foreign = sorted(set(vision) - set(_Vision.__struct_fields__))
    if isinstance(vision.get("layers"), list):
        foreign.append("layers of several stages")
    if foreign:
        raise UserError(
            f"{name} is not a plain CLIP ViT image tower ({', '.join(map(repr, foreign[:5]))}). Use a ViT-*"
        )


def is_checkpoint_arch(name: str) -> bool:
    """True if `model.arch` names one of fastft's checkpoints, whose state holds the architecture."""
    return (Path(name) / STATE).is_file()


def _stored_arch(name: str) -> Arch | None:
    """Return the architecture in one of fastft's checkpoints, or None for another name."""
    if not is_checkpoint_arch(name):
        return None
    try:
        stored: Arch = check(STATE, json.loads(read_regular(Path(name) / STATE, MAX_STATE_BYTES))["arch"], Arch)
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise UserError(f"model.arch {name}: its {STATE} holds no architecture ({first_sentence(error)})") from None
    return stored


def load_open_clip_config(name: str) -> dict[str, Any]:
    """Read open_clip's model configuration directly from its JSON files, because importing open_clip takes seconds."""
    path = (
        Path(name)
        if name.endswith(".json")
        else open_clip_folder() / "model_configs" / f"{name.replace('/', '-')}.json"
    )
    try:
        config = json.loads(read_regular(path, MAX_CONFIG_BYTES).decode("utf-8"))
    except FileNotFoundError:
        near = get_close_matches(path.stem, [p.stem for p in path.parent.glob("*.json")], n=1)
        advice = f"Did you mean '{near[0]}'?" if near else "Use an open_clip model name or a .json file"
        raise UserError(f"model.arch '{name}' is not known. {advice}") from None
    except OSError as error:
        raise UserError(f"model configuration {path} cannot be read ({error.strerror or error})") from None
    except RecursionError:
        raise UserError(f"model configuration {path} is nested too deeply. Write it as open_clip does") from None
    except ValueError as error:
        raise UserError(f"model configuration {path} is not valid JSON ({error})") from None
    # open_clip_config.json on model hubs
    config = config.get("model_cfg", config) if isinstance(config, dict) else config
    if not isinstance(config, dict):
        raise UserError(f"model configuration {path} must be a JSON object with a vision_cfg")
    return config
