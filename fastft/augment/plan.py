"""The plan of a batch: everything random about it, drawn beforehand, one row per image."""

import numpy as np

from fastft.recipe.constants import MAX_ERASE

MAX_OPS = 12  # RandAugment uses n, 3-Augment 4, AugMix width x depth (timm's default: 3 chains of up to 3)
MAX_CHAINS = 4
CHAIN_DEPTH = MAX_OPS // MAX_CHAINS
JITTER = MAX_OPS - CHAIN_DEPTH  # colour jitter's ops are the last three, after AugMix's mixture of the other chains
HFLIP, VFLIP, TRANSPOSE = 1, 2, 4  # bits of a row's `flip`, carried out in this order

# The op id in a plan is the position in this tuple; the comment gives the meaning of its argument.
OPS = (
    "Identity",
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",  # degrees counter-clockwise, as Pillow
    "Posterize",  # bits kept, 0..8
    "Solarize",  # threshold: pixels >= it are inverted, 0..256
    "SolarizeAdd",  # added to pixels < 128
    "Color",  # Pillow enhance factor
    "Contrast",  # Pillow enhance factor
    "Brightness",  # Pillow enhance factor
    "Sharpness",  # Pillow enhance factor
    "ShearX",  # shear factor
    "ShearY",  # shear factor
    "TranslateX",  # pixels
    "TranslateY",  # pixels
    "Grayscale",
    "GaussianBlur",  # radius (standard deviation) in pixels
)
OP_ID = {name: i for i, name in enumerate(OPS)}

PLAN_DTYPE = np.dtype(
    [
        ("sample", np.int64),  # dataset index
        ("crop", np.int32, 4),  # y, x, h, w in source pixels: resized; nothing outside it is seen
        ("resize", np.int32, 2),  # h, w that the crop is resized to
        ("window", np.int32, 2),  # y, x in the resized image where the output begins; outside: reflected
        # after resize and window: HFLIP left-right, VFLIP up-down, TRANSPOSE; quarter turns are two of them
        ("flip", np.uint8),
        ("bicubic", np.uint8),  # 1 bicubic, 0 bilinear; both antialiased
        ("op", np.uint8, MAX_OPS),  # index into OPS; chain c of AugMix begins at op[c * CHAIN_DEPTH]
        ("argument", np.float64, MAX_OPS),  # resolved argument of that op, sign applied
        ("chain_weights", np.float32, MAX_CHAINS),  # AugMix: weight per chain; all 0 = plain sequence of ops
        ("blend", np.float32),  # AugMix: weight of the mixture against the un-augmented image
        ("erase", np.int32, (MAX_ERASE, 4)),  # y, x, h, w in output pixels; h = 0: none; drawn in order
        ("erase_mode", np.uint8),  # index into ERASE_MODES
        ("noise_key", np.uint64),  # of rng.noise_rgb, whose index is the pixel y * size + x or the box
    ],
    align=True,
)
