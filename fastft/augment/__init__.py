"""Augmentation: a policy gives plans, a plan gives pixels. This list is what may be used from outside.

Names are looked up when first used: compiled code and torch are loaded by what needs them only.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "AugmentPolicy": "policies",
    "parse_policy": "policies",
    "PLAN_DTYPE": "plan",
    "draw_plan": "draw",
    "eval_plan": "draw",
    "source_region": "geometry",
    "source_regions": "geometry",
    "level_argument": "levels",
    "apply_op": "ops_image",
    "apply_argument": "ops_image",
    "resized_crop": "resize",
    "CpuAugment": "cpu",
    "CudaAugment": "cuda",
    "Mixer": "mix",
    "describe_policy": "describe",
    "describe_row": "describe",
    "plan_to_json": "describe",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
