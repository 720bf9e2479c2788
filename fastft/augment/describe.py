"""Describe policies and plans in words."""

from __future__ import annotations

import math
from typing import Any

from fastft.augment.plan import CHAIN_DEPTH, HFLIP, JITTER, OPS, TRANSPOSE, VFLIP, Op
from fastft.augment.policies import AugmentPolicy, AugMix, RandAugment, ThreeAugment

FLIPS = {HFLIP: "flip", VFLIP: "vertical flip", TRANSPOSE: "transpose"}


# -- a plan ------------------------------------------------------------------------------------------------------------


def describe_row(row: Any) -> list[str]:
    """Describe the steps in one row of a plan after the crop, in order: ["flip", "Rotate +27.0°", "erase 50x80"]."""
    words = [word for bit, word in FLIPS.items() if row["flip"] & bit]
    if row["chain_weights"].any():
        words.append(f"mixture {row['blend']:.0%}")
    for weight, ops in chains_of(row):
        described = [f"{op.name} {op.format.format(argument)}".rstrip() for op, argument in ops]
        words += described if weight is None else [f"{weight:.0%} {' then '.join(described)}"]
    return words + [f"erase {h}x{w}" for _, _, h, w in row["erase"].tolist() if h > 0]


def chains_of(row: Any) -> list[tuple[float | None, list[tuple[Op, float]]]]:
    """List the chains in a plan row as (weight, [(op, argument), ...]), with the ops in order.

    AugMix has one entry per chain, then an entry with weight None for the colour jitter after them. Other policies
    have one entry with weight None.
    """
    ops = [(OPS[op], argument) for op, argument in zip(row["op"].tolist(), row["argument"].tolist(), strict=True)]
    weights = row["chain_weights"].tolist()
    parts: list[tuple[float | None, list[tuple[Op, float]]]] = [
        (weight, ops[chain * CHAIN_DEPTH :][:CHAIN_DEPTH]) for chain, weight in enumerate(weights) if weight > 0
    ]
    if not parts or weights[-1] == 0:
        parts.append((None, ops[JITTER:] if parts else ops))
    return [(weight, [op for op in part if op[0] != OPS[0]]) for weight, part in parts]


# -- a policy ----------------------------------------------------------------------------------------------------------


def describe_policy(policy: AugmentPolicy, size: int) -> list[str]:
    """Describe the steps that every training image goes through, one line each."""
    lines = [_describe_crop(policy, size)]
    if policy.hflip:
        lines.append(f"horizontal flip, probability {policy.hflip:g}")
    if policy.vflip:
        lines.append(f"vertical flip, probability {policy.vflip:g}")
    if policy.quarter_turns:
        lines.append(f"rotation by 0, 90, 180 or 270 degrees, probability {policy.quarter_turns:g}")
    lines += _describe_ops(policy)
    if policy.color_jitter and policy.color_jitter_prob:
        lines.append(
            f"colour jitter, probability {policy.color_jitter_prob:g}: {_describe_jitter(policy.color_jitter)}"
        )
    if policy.erase_prob:
        boxes = "one box" if policy.erase_count == 1 else f"1 to {policy.erase_count} boxes"
        filling = {"const": "zeros", "rand": "one random colour per box", "pixel": "per-pixel noise"}
        lines.append(f"random erasing, probability {policy.erase_prob:g}, {boxes}, {filling[policy.erase_mode]}")
    return lines


def _describe_crop(policy: AugmentPolicy, size: int) -> str:
    if policy.crop == "src":
        return f"{policy.interpolation} resize of the short side to {size}, padded by 4, random {size} px crop"
    area = f"{policy.scale[0]:.0%} to {policy.scale[1]:.0%} of the image"
    aspect = f"aspect {policy.ratio[0]:.2f} to {policy.ratio[1]:.2f}"
    return f"random crop of {area}, {aspect}, {policy.interpolation} resize to {size} px"


def _describe_ops(policy: AugmentPolicy) -> list[str]:
    drawn = policy.auto_augment
    if isinstance(drawn, RandAugment):
        repeats = "distinct" if not drawn.replacement else "any"
        ops = f"{drawn.count} of {len(drawn.ops)} ops ({repeats}), each with probability {drawn.probability:g}"
        return [f"{policy.augment}: {ops}, magnitude {_describe_magnitude(drawn)}"]
    if isinstance(drawn, AugMix):
        depth = f"{drawn.depth}" if drawn.depth > 0 else f"1 to {CHAIN_DEPTH}"
        chains = f"{drawn.width} chains, each with {depth} of {len(drawn.ops)} ops"
        return [f"{policy.augment}: {chains}, magnitude {_describe_magnitude(drawn)}, alpha {drawn.alpha:g}"]
    if isinstance(drawn, ThreeAugment):
        return [f"{policy.augment}: grayscale, solarise or blur, then {_describe_jitter(drawn.jitter)}"]
    return []


def _describe_jitter(strength: float) -> str:
    return f"brightness, contrast and saturation times 1 ± {strength:g}, in random order"


def _describe_magnitude(drawn: RandAugment | AugMix) -> str:
    greatest = drawn.magnitude_max if isinstance(drawn, RandAugment) else 10
    if drawn.magnitude_std == math.inf:
        return f"uniform in 0..{min(drawn.magnitude, greatest):g}"
    spread = f" ± {drawn.magnitude_std:g}" if drawn.magnitude_std else ""
    return f"{drawn.magnitude:g}{spread}, clipped to 0..{greatest}"
