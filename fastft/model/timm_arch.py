"""timm models: creating them, reading their numbers, and refusing those that fastft could not repeat or resume exactly.

timm is imported only when it is used, because the import takes three seconds.
"""

from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import nn

from beton_tools.base.errors import UserError, first_sentence
from fastft.model.arch import check_image_size
from fastft.recipe.constants import TIMM

Trunk: TypeAlias = Any  # an nn.Module with the methods of timm's models, which share no class
NATIVE = "natively QuickGELU"  # in timm's notes about weights
# arguments of timm's models, and the options that set them
OPTIONS = {
    "img_size": "model.image_size",
    "drop_path_rate": "model.drop_path",
    "patch_drop_rate": "model.patch_dropout",
}


def pretrained_cfg(name: str, option: str = "model.arch") -> Any:
    """Return timm's `PretrainedCfg` for a model name with or without a pretrained tag.

    It holds the normalisation, the input size and layer names. option: named in the message. Raises UserError, with the
    nearest name, if timm has no such model or tag.
    """
    import timm

    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        raise UserError(f"{option} '{TIMM}{name}' is not known. {_suggest(model, timm.list_models())}")
    config = None
    with suppress(RuntimeError):  # no such tag
        config = timm.get_pretrained_cfg(name)
    if config is None:
        near = _suggest(tag, pretrained_tags(model), f"{model}.")
        raise UserError(f"{option} '{TIMM}{name}' is not known. {near}")
    return config


def classifier_names(name: str) -> tuple[str, ...]:
    """List the modules that timm calls a model's heads."""
    names = pretrained_cfg(name).classifier
    return (names,) if isinstance(names, str) else tuple(names)


def pretrained_tags(model: str) -> list[str]:
    """List the tags for which timm offers a model's weights."""
    import timm

    return [name.partition(".")[2] for name in timm.list_pretrained(f"{model}.*")]


@lru_cache(maxsize=64)
def clip_numbers(name: str) -> tuple[bool, int]:
    """Return (QuickGELU, attention heads) for timm's CLIP ViT with this name, with or without a pretrained tag.

    QuickGELU is true if the model has it, or if timm's note about the weights says that they were trained with it.
    Raises UserError if there is no such model or tag, or if it is another kind of tower.
    """
    config = pretrained_cfg(name, "model.weights")
    with torch.device("meta"):
        trunk = create_timm(name, config.input_size[-1], num_classes=2)
    if not isinstance(getattr(trunk, "norm_pre", None), nn.LayerNorm) or trunk.num_prefix_tokens != 1:
        raise UserError(f"timm's {name} is not a plain CLIP ViT. Set --model.arch={TIMM}{name}")
    block = trunk.blocks[0]
    stated = type(block.mlp.act).__name__ == "QuickGELU" or any(NATIVE in note for note in config.notes or ())
    return stated, block.attn.num_heads


def _suggest(wrong: str, names: list[str], prefix: str = "") -> str:
    near = get_close_matches(wrong, names, n=1)
    return f"Did you mean '{TIMM}{prefix}{near[0]}'?" if near else "See timm.list_models()"


def timm_args(name: str, image_size: int) -> dict[str, Any]:
    """Return the arguments that build the model for an image size, or none for models that take every size."""
    return {"img_size": image_size} if pretrained_cfg(name).fixed_input_size else {}


def create_timm(name: str, image_size: int, num_classes: int, **more: Any) -> Trunk:
    """Create timm's model, built and initialised by `timm.create_model`.

    more: further arguments for `timm.create_model`. Arguments that are 0 or False are left out. Raises UserError if there is
    no such model, if it does not take an argument or this image size, or if `check_supported` refuses it.
    """
    import timm

    arguments = timm_args(name, image_size) | {key: value for key, value in more.items() if value}
    try:
        trunk = timm.create_model(name, num_classes=num_classes, **arguments)
    except (TypeError, AssertionError, ValueError, NotImplementedError) as error:
        for argument, option in OPTIONS.items():
            if argument in arguments and f"'{argument}'" in str(error):
                raise UserError(f"{TIMM}{name} has no {argument}. Leave {option} at its default") from None
        raise UserError(
            f"{TIMM}{name} cannot be built at {image_size} px ({first_sentence(error)}). Use another image size or model"
        ) from None
    check_supported(name, trunk)
    return trunk


def check_supported(name: str, trunk: Trunk) -> None:
    """Raise UserError if training the model could not be repeated exactly, or if it has no linear head over layers."""
    saved = trunk.state_dict().keys()
    statistics = next((key for key, _ in trunk.named_buffers() if key in saved), None)
    modules = dict(trunk.named_modules())
    dropout = next((key for key, m in modules.items() if isinstance(m, nn.Dropout) and m.p > 0), None)
    fixed = next((m for m in _with_buffers(trunk) if not hasattr(m, "init_non_persistent_buffers")), None)
    head = trunk.get_classifier() if hasattr(trunk, "get_classifier") else None
    reasons = {
        f"keeps running statistics ({statistics}), which depend on the micro-batch": statistics,
        f"has buffers that timm cannot compute again ({type(fixed).__name__})": fixed,
        f"has its own dropout ({dropout}), which a resumed run could not repeat": dropout,
        "has no single linear head": not isinstance(head, nn.Linear),
        "has no group_matcher, which numbers its layers": not hasattr(trunk, "group_matcher"),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(f"{TIMM}{name} {reason}. Use another model, such as a ViT, ConvNeXt or Swin")


def restore_buffers(trunk: Trunk) -> None:
    """Compute the buffers, which checkpoints do not hold, for a model built on the meta device that has its weights."""
    for module in _with_buffers(trunk):
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[key] = torch.empty_like(buffer, device="cpu")
        module.init_non_persistent_buffers()


def _with_buffers(trunk: Trunk) -> list[Any]:
    return [m for m in trunk.modules() if any(buffer is not None for buffer in m._buffers.values())]


def layer_ids(trunk: Trunk) -> dict[str, int]:
    """Return every parameter's layer, numbered like `timm.optim`'s param_groups_layer_decay: stem 0, head highest."""
    from timm.models import group_parameters

    matcher = trunk.group_matcher(coarse=False)
    return group_parameters(trunk, matcher, reverse=True)


MAX_IMAGE_SIZE = 8192  # as in model.image_size, so that a mistake cannot fill the memory


@dataclass(frozen=True)
class TimmArch:
    """A timm model at an image size. `timm` and `image_size` determine the other values."""

    timm: str  # timm's name, with or without a pretrained tag
    image_size: int
    patch_size: int  # pixels per token in the last stage. Image sizes are multiples of it
    layers: int  # layers between stem and head, as timm's group_matcher numbers them
    width: int  # the head's input width
    parameters: int  # without the head

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    def at(self, image_size: int) -> "TimmArch":
        """Return the same model for another image size. timm interpolates or rebuilds what depends on it.

        Raises UserError if the size is not a multiple of the patch size, or if the model does not take it.
        """
        check_image_size(image_size, self.patch_size)
        return self if image_size == self.image_size else measure(self.timm, image_size)


def load_timm_arch(name: str) -> TimmArch:
    """Return the architecture for 'timm/NAME' at its pretrained weights' size. Raises UserError as `create_timm`."""
    model = name.removeprefix(TIMM)
    return measure(model, pretrained_cfg(model).input_size[-1])


@lru_cache(maxsize=64)
def measure(name: str, image_size: int) -> TimmArch:
    """Read a model's numbers on the meta device."""
    if image_size > MAX_IMAGE_SIZE:
        raise UserError(f"image size {image_size} is larger than {MAX_IMAGE_SIZE}. Use a smaller one")
    with torch.device("meta"):
        trunk = create_timm(name, image_size, num_classes=2)
    head = trunk.get_classifier()
    counts = (sum(p.numel() for p in module.parameters()) for module in (trunk, head))
    return TimmArch(
        timm=name,
        image_size=image_size,
        patch_size=trunk.feature_info[-1]["reduction"],
        layers=max(layer_ids(trunk).values()) - 1,
        width=head.in_features,
        parameters=next(counts) - next(counts),
    )
