"""Pretrained weights into timm's models: timm's own, files in the forms that timm converts, and folders."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from beton_tools.base.errors import UserError
from fastft.model.timm_arch import Trunk, pretrained_tags
from fastft.model.weight_files import WeightFolder, find_weight_folder, first_sentence, read_state_dict
from fastft.model.weights import is_transformers, unknown_tag, without_wrappers
from fastft.recipe.constants import TIMM

if TYPE_CHECKING:
    from fastft.model.timm_tower import TimmClassifier

PRETRAINED = "timm"  # model.weights for the tag in the model's name, or timm's default
OPEN_CLIP_TRUNK = "visual.trunk."  # open_clip's prefix for timm's towers
# of pretraining, not of the tower: MAE's decoder and mask, heads
PRETRAINING = ("decoder", "mask_token", "head", "contrastive", "dino_head", "ibot_head")


def find_tag(weights: str, name: str) -> str | None:
    """The pretrained tag that `model.weights` names, "" for the default; None for a file or folder.

    Raises:
        UserError: neither.
    """
    if weights == PRETRAINED:
        return ""
    if Path(weights).suffix or Path(weights).exists() or weights.startswith("hf-hub:"):
        return None
    known = pretrained_tags(name.partition(".")[0])
    if weights not in known:
        raise UserError(unknown_tag(weights, TIMM + name, [PRETRAINED, *known]))
    return weights


def create_pretrained(create: Callable[..., Trunk], name: str, tag: str, options: dict[str, Any]) -> Trunk:
    """The model with weights that timm downloads or has in its cache; the head is new.

    Raises:
        UserError: timm offers none, or they cannot be downloaded.
    """
    full = f"{name.partition('.')[0]}.{tag}" if tag else name
    if not pretrained_tags(name.partition(".")[0]):
        raise UserError(f"timm has no weights for {name}; set model.weights to a file, or to random")
    try:
        # another number of classes than the model's makes timm leave out its head
        return create(full, pretrained=True, pretrained_cfg_overlay={"num_classes": -1}, **options)
    except UserError:
        raise
    except Exception as error:  # the hub's client and its HTTP library have many
        raise UserError(
            f"weights of timm's {full} could not be downloaded ({first_sentence(error)}); download them elsewhere and set "
            "model.weights to the file"
        ) from None


def load_timm_weights(model: "TimmClassifier", weights: str) -> None:
    """Fill everything but the head from a file, a folder of timm or open_clip, or 'hf-hub:ORG/NAME'.

    timm's own converters read the forms that it knows: its own, open_clip's, MAE's, DINO's, BEiT's, and others of the
    authors of its models; positions are interpolated.

    Raises:
        UserError: unreadable, or weights of another model.
    """
    name, trunk = model.visual.arch.timm, model.visual.trunk
    folder = find_weight_folder(weights)
    if folder is not None:
        _check_folder(folder, weights, name)
    state = without_wrappers(read_state_dict(Path(weights)) if folder is None else folder.read())
    if is_transformers(state):
        raise UserError(
            f"{weights} is CLIP of transformers; set model.arch to open_clip's name, such as ViT-B-16-quickgelu"
        )
    if any(key.startswith(OPEN_CLIP_TRUNK) for key in state):
        state = {
            k.removeprefix(OPEN_CLIP_TRUNK): v for k, v in state.items() if k.startswith(OPEN_CLIP_TRUNK)
        }
    _load(trunk, _convert(trunk, state, name, weights), name, weights)


def _check_folder(folder: WeightFolder, weights: str, name: str) -> None:
    theirs = folder.timm_name
    if theirs is None:
        return  # CLIP's own ViT, which timm converts
    if theirs.partition(".")[0] != name.partition(".")[0]:
        raise UserError(f"{weights} holds timm's {theirs}; set --model.arch={TIMM}{theirs}")


def _convert(trunk: Trunk, state: dict[str, Tensor], name: str, weights: str) -> dict[str, Tensor]:
    """timm's names and shapes, by the converter in the module that defines the model."""
    import timm

    module = sys.modules[timm.model_entrypoint(name.partition(".")[0]).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return dict(convert(state, trunk))
    except Exception as error:  # written for the authors' files; another one breaks them in many ways
        raise UserError(
            f"weights {weights} do not fit {TIMM}{name} ({type(error).__name__}: {first_sentence(error)}); check model.arch"
        ) from None


def _load(trunk: Trunk, state: dict[str, Tensor], name: str, weights: str) -> None:
    heads = trunk.pretrained_cfg["classifier"]
    head = tuple(f"{h}." for h in ((heads,) if isinstance(heads, str) else heads))
    own = trunk.state_dict()
    state = {key: value for key, value in state.items() if not key.startswith(head)}
    unexpected = [key for key in state if key not in own and not key.startswith(PRETRAINING)]
    missing = [key for key in own if key not in state and not key.startswith(head)]
    odd = [key for key in state if key in own and state[key].shape != own[key].shape]
    if odd:
        raise UserError(
            f"weights {weights} do not fit {TIMM}{name}: {odd[0]} is {tuple(state[odd[0]].shape)} in the file, "
            f"{tuple(own[odd[0]].shape)} in the model; check model.arch"
        )
    if missing or unexpected:
        raise UserError(
            f"weights {weights} do not fit {TIMM}{name}: missing {missing[:3]}, unexpected {unexpected[:3]}; check model.arch"
        )
    trunk.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)
