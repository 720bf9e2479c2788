"""The architecture of either kind of tower: by the name in a recipe, or as a checkpoint holds it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeAlias

from fastft.model.arch import Arch, load_open_clip_arch
from fastft.model.timm_arch import TimmArch, load_timm_arch, measure
from fastft.recipe.constants import TIMM

TowerArch: TypeAlias = Arch | TimmArch


def load_arch(name: str) -> TowerArch:
    """The architecture that `model.arch` names: 'timm/NAME', an open_clip model name, or a .json file of its form.

    Raises:
        UserError: as `load_timm_arch` and `load_open_clip_arch`.
    """
    return load_timm_arch(name) if name.startswith(TIMM) else load_open_clip_arch(name)


def arch_from_dict(values: Mapping[str, Any]) -> TowerArch:
    """Inverse of `asdict`, for checkpoints and exports.

    Raises:
        UserError: an architecture that is too large, or a timm model that the installed timm lacks or builds differently.
        ValueError, TypeError: not an architecture.
    """
    if "timm" not in values:
        return Arch(**values)
    arch = measure(values["timm"], values["image_size"])
    if asdict(arch) != dict(values):
        raise ValueError(f"the installed timm builds {values['timm']} with other numbers")
    return arch
