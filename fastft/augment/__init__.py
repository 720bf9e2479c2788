"""Augmentation: a policy gives plans, a plan gives pixels. `__all__` is the public interface.

Names are imported when first used, because some of their modules compile code or import torch.
"""

from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastft.augment.cpu import CpuAugment as CpuAugment
    from fastft.augment.cuda import CudaAugment as CudaAugment
    from fastft.augment.describe import describe_policy as describe_policy
    from fastft.augment.describe import describe_row as describe_row
    from fastft.augment.describe import plan_to_json as plan_to_json
    from fastft.augment.draw import draw_plan as draw_plan
    from fastft.augment.draw import eval_plan as eval_plan
    from fastft.augment.mix import Mixer as Mixer
    from fastft.augment.plan import PLAN_DTYPE as PLAN_DTYPE
    from fastft.augment.policies import AugmentPolicy as AugmentPolicy
    from fastft.augment.policies import parse_policy as parse_policy
    from fastft.augment.resize import source_regions as source_regions

    def source_region(row: Any, size: int) -> tuple[int, int, int, int]: ...  # njit hides the types of resize's


__all__ = [
    "PLAN_DTYPE", "AugmentPolicy", "CpuAugment", "CudaAugment", "Mixer", "describe_policy",
    "describe_row", "draw_plan", "eval_plan", "parse_policy", "plan_to_json", "source_region",
    "source_regions",
]  # fmt: skip
# in the order in which a name is looked for, the light ones first
_MODULES = ("policies", "plan", "describe", "draw", "resize", "cpu", "mix", "cuda")


def __getattr__(name: str) -> Any:
    for module in _MODULES if name in __all__ else ():
        with suppress(AttributeError):
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
