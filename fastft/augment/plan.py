"""The ops, one row each, and a batch's plan. The plan holds everything random, drawn beforehand, one row per image."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from fastft.recipe.constants import MAX_ERASE

MAX_OPS = 12  # RandAugment uses n, 3-Augment 4, AugMix width x depth (timm's default: 3 chains with up to 3 ops)
MAX_CHAINS = 4
CHAIN_DEPTH = MAX_OPS // MAX_CHAINS
JITTER = MAX_OPS - CHAIN_DEPTH  # colour jitter's ops are the last three, after AugMix's mixture of the other chains
HFLIP, VFLIP, TRANSPOSE = 1, 2, 4  # bits in a row's `flip`, carried out in this order

# kinds of op: what determines a new pixel
POINT = 0  # the same for each byte: depends on its value, the argument and the image's mean luma (ops.point_entry)
TABLE = 1  # one table per channel, which may depend on the image (ops.table_entry)
AFFINE = 2  # shows another place in the image (ops.affine_matrix)
IMAGE = 3  # depends on other pixels or channels: has its own code in ops_image.py and cuda_ops.py


class Rule(IntEnum):
    """The rule by which a magnitude on the 0..10 scale becomes an op's argument (levels.argument)."""

    NO_ARGUMENT, ROTATE, SHEAR, TRANSLATE_X, TRANSLATE_Y, ENHANCE, ENHANCE_INCREASING = range(7)
    POSTERIZE, POSTERIZE_INCREASING, SOLARIZE, SOLARIZE_INCREASING, SOLARIZE_ADD, DESATURATE, BLUR = range(7, 14)


@dataclass(frozen=True)
class Op:
    """An augmentation op.

    Attributes:
        format: how its argument is printed after its name. Empty if it has no argument.
        timm: the op's names in timm, each with the rule for its argument.
    """

    name: str
    kind: int
    format: str = ""
    timm: Mapping[str, Rule] = field(default_factory=dict)


def _enhance(name: str, kind: int, **more: Rule) -> Op:
    """Create an op whose argument is a Pillow enhance factor."""
    return Op(name, kind, "x{:.2f}", {name: Rule.ENHANCE, f"{name}Increasing": Rule.ENHANCE_INCREASING, **more})


# An op's number in a plan is its position here, so 0 is Identity. Comments explain the argument.
OPS = (
    Op("Identity", IMAGE),
    Op("AutoContrast", TABLE, timm={"AutoContrast": Rule.NO_ARGUMENT}),
    Op("Equalize", TABLE, timm={"Equalize": Rule.NO_ARGUMENT}),
    Op("Invert", POINT, timm={"Invert": Rule.NO_ARGUMENT}),
    Op("Rotate", AFFINE, "{:+.1f}°", {"Rotate": Rule.ROTATE}),  # degrees counter-clockwise, as Pillow
    Op(  # bits kept, 0..8
        "Posterize",
        POINT,
        "{:.0f} bits",
        {"Posterize": Rule.POSTERIZE, "PosterizeIncreasing": Rule.POSTERIZE_INCREASING},
    ),
    Op(  # threshold, 0..256: pixels >= it are inverted
        "Solarize", POINT, "from {:.0f}", {"Solarize": Rule.SOLARIZE, "SolarizeIncreasing": Rule.SOLARIZE_INCREASING}
    ),
    Op("SolarizeAdd", POINT, "+{:.0f}", {"SolarizeAdd": Rule.SOLARIZE_ADD}),  # added to pixels < 128
    _enhance("Color", IMAGE, Desaturate=Rule.DESATURATE),
    _enhance("Contrast", POINT),
    _enhance("Brightness", POINT),
    _enhance("Sharpness", IMAGE),
    Op("ShearX", AFFINE, "{:+.2f}", {"ShearX": Rule.SHEAR}),  # shear factor
    Op("ShearY", AFFINE, "{:+.2f}", {"ShearY": Rule.SHEAR}),
    Op("TranslateX", AFFINE, "{:+.0f} px", {"TranslateXRel": Rule.TRANSLATE_X}),  # pixels
    Op("TranslateY", AFFINE, "{:+.0f} px", {"TranslateYRel": Rule.TRANSLATE_Y}),
    Op("Grayscale", IMAGE),
    Op("GaussianBlur", IMAGE, "radius {:.2f}", {"GaussianBlur": Rule.BLUR}),  # radius (standard deviation) in pixels
)
OP_ID = {op.name: number for number, op in enumerate(OPS)}
TIMM_OPS = {name: (OP_ID[op.name], rule) for op in OPS for name, rule in op.timm.items()}  # (number, rule)

PLAN_DTYPE = np.dtype(
    [
        ("sample", np.int64),  # dataset index
        ("crop", np.int32, 4),  # y, x, h, w in source pixels. It is resized, and nothing outside it is seen
        ("resize", np.int32, 2),  # h, w to which the crop is resized
        ("window", np.int32, 2),  # y, x in the resized image where the output begins. Reflected outside it
        # applied after resize and window: HFLIP left-right, VFLIP up-down, TRANSPOSE. A quarter turn is two of these
        ("flip", np.uint8),
        ("bicubic", np.uint8),  # 1 bicubic, 0 bilinear, both antialiased
        ("op", np.uint8, MAX_OPS),  # index into OPS. AugMix's chain c begins at op[c * CHAIN_DEPTH]
        ("argument", np.float64, MAX_OPS),  # resolved argument of that op, sign applied
        ("chain_weights", np.float32, MAX_CHAINS),  # AugMix: weight per chain. All 0 = plain sequence of ops
        ("blend", np.float32),  # AugMix: weight of the mixture against the un-augmented image
        ("erase", np.int32, (MAX_ERASE, 4)),  # y, x, h, w in output pixels, drawn in order. h = 0: no box
        ("erase_mode", np.uint8),  # index into ERASE_MODES
        ("noise_key", np.uint64),  # key for rng.noise_rgb, whose index is the pixel y * size + x or the box
    ],
    align=True,
)
