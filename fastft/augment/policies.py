"""Augmentation policies: they are written as short strings in timm's grammar, which this module defines and parses.

rand-m9-n2-mstd0.5-inc1   RandAugment (timm)         augmix-m3-w3-d-1   AugMix (timm)
3aug, 3aug-j0.3           3-Augment (DeiT III)       none               crop and flip alone
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from beton_tools.base.errors import UserError
from fastft.augment.plan import CHAIN_DEPTH, JITTER, MAX_CHAINS, MAX_OPS, TIMM_OPS
from fastft.recipe.constants import (
    BICUBIC,
    CLIP_MEAN,
    CLIP_STD,
    CROPS,
    ERASE_MODES,
    INTERPOLATIONS,
    MAX_ERASE,
    RESIZES,
    SHORTEST,
)

PLAIN_OPS = (  # timm's RandAugment list without "inc1"
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast", "Brightness",
    "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
)  # fmt: skip
INCREASING_OPS = tuple(f"{name}Increasing" if f"{name}Increasing" in TIMM_OPS else name for name in PLAIN_OPS)

OP_SETS: dict[str, dict[str, float]] = {  # timm's named sets (key "t") with each op's weight
    "weights": {
        "Rotate": 3, "ShearX": 2, "ShearY": 2, "TranslateXRel": 1, "TranslateYRel": 1, "ColorIncreasing": 0.25,
        "SharpnessIncreasing": 0.25, "AutoContrast": 0.25, "SolarizeIncreasing": 0.05, "SolarizeAdd": 0.05,
        "ContrastIncreasing": 0.05, "BrightnessIncreasing": 0.05, "Equalize": 0.05, "PosterizeIncreasing": 0.05, "Invert": 0.05,
    },
    "3a": {"SolarizeIncreasing": 1, "Desaturate": 1, "GaussianBlur": 1},
    "3aw": {
        "SolarizeIncreasing": 6, "Desaturate": 6, "GaussianBlur": 6, "Rotate": 3, "ShearX": 2, "ShearY": 2,
        "PosterizeIncreasing": 1, "AutoContrast": 1, "ColorIncreasing": 1, "SharpnessIncreasing": 1, "ContrastIncreasing": 1,
        "BrightnessIncreasing": 1, "Equalize": 1, "Invert": 1,
    },
}  # fmt: skip
WITH_REPLACEMENT = ("3a",)  # a list in timm, not a weight table

AUGMIX_OPS = (
    "AutoContrast", "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing", "Equalize", "Rotate",
    "PosterizeIncreasing", "SolarizeIncreasing", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
)  # fmt: skip


@dataclass(frozen=True)
class RandAugment:
    """Draw `count` ops from `ops` with `weights`, and apply each with `probability`."""

    ops: tuple[str, ...]
    weights: tuple[float, ...]
    replacement: bool  # may one image draw an op twice?
    magnitude: float = 10
    magnitude_std: float = 0.0  # 0: fixed, infinite: uniform in 0..magnitude
    magnitude_max: int = 10
    count: int = 2
    probability: float = 0.5


@dataclass(frozen=True)
class AugMix:
    """Mix `width` chains of `depth` ops (-1: 1 to 3 per chain) with Dirichlet and Beta weights."""

    ops: tuple[str, ...] = AUGMIX_OPS
    magnitude: float = 3
    magnitude_std: float = math.inf
    width: int = 3
    depth: int = -1
    alpha: float = 1.0


@dataclass(frozen=True)
class ThreeAugment:
    """Apply grayscale, solarise or blur, one of them at random.

    Then brightness, contrast and colour change by 1 +- jitter in random order.
    """

    jitter: float = 0.3


AutoAugment = RandAugment | AugMix | ThreeAugment | None


@dataclass(frozen=True)
class AugmentPolicy:
    """Everything that determines how plans are drawn, and how pixels are filled and normalised.

    Args:
        augment: timm's RandAugment string, "3aug" or "augmix", each with its keys, or "none".
        crop: "rrc" (random resized crop, whose area fraction is in `scale` and whose aspect ratio is in `ratio`) or "src"
            (DeiT III's simple crop: short side to the output size, reflect-padded by 4 pixels, random window).
        hflip: how probable a left-right flip is.
        vflip: how probable an up-down flip is.
        quarter_turns: how probable a turn by 0, 90, 180 or 270 degrees is.
        color_jitter: after `augment`, multiply brightness, contrast and saturation by 1 +- `color_jitter`, in random
            order, as timm's `color_jitter` does.
        color_jitter_prob: how probable `color_jitter` is.
        mean: per channel, for pixels in 0..1.
        std: as `mean`.
        crop_pct: for evaluation, which fraction of the resized short side the centre crop keeps.
        eval_resize: for evaluation, "shortest" resizes the short side, "squash" resizes the image to a square.
        eval_interpolation: as `interpolation`, for evaluation.

    Raises:
        UserError: `augment` is invalid, or a value is outside its range. The message names it.
    """

    augment: str = "rand-m9-mstd0.5-inc1"
    crop: str = "rrc"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    quarter_turns: float = 0.0
    color_jitter: float = 0.0
    color_jitter_prob: float = 1.0
    interpolation: str = BICUBIC
    erase_prob: float = 0.25
    erase_mode: str = "pixel"
    erase_count: int = 1
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    crop_pct: float = 1.0
    eval_resize: str = SHORTEST
    eval_interpolation: str = BICUBIC

    def __post_init__(self) -> None:
        for name in ("scale", "ratio", "mean", "std"):  # YAML gives lists
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        _one_of("crop", self.crop, CROPS)
        for interpolation in (self.interpolation, self.eval_interpolation):
            _one_of("interpolation", interpolation, INTERPOLATIONS)
        _one_of("eval_resize", self.eval_resize, RESIZES)
        _one_of("erase mode", self.erase_mode, ERASE_MODES)
        for name in ("hflip", "vflip", "quarter_turns", "color_jitter", "color_jitter_prob", "erase_prob"):
            _in_range(name, getattr(self, name), 0, 1)
        _in_range("erase count", self.erase_count, 1, MAX_ERASE)
        _in_range("crop_pct", self.crop_pct, 1e-3, 1)
        _ordered("scale", self.scale, 1.0)
        _ordered("ratio", self.ratio, math.inf)
        if len(self.mean) != 3 or len(self.std) != 3 or not (max(map(abs, self.mean)) <= 10 and min(self.std) > 0):
            raise UserError(
                f"mean is {self.mean}, std is {self.std}. Give three numbers each, mean within -10 and 10, std above 0"
            )
        parsed = parse_augment(self.augment)
        slots = getattr(parsed, "count", 0) or CHAIN_DEPTH * getattr(parsed, "width", 0)
        if self.color_jitter > 0 and slots > JITTER:
            most = f"n{JITTER} or w{MAX_CHAINS - 1}"
            raise UserError(f"augmentation {self.augment!r}: with color_jitter use {most} at most")

    @property
    def auto_augment(self) -> AutoAugment:
        """Return the parsed `augment` string."""
        return parse_augment(self.augment)

    @property
    def fill(self) -> tuple[int, int, int]:
        """Return the colour for areas that geometric ops uncover: the mean, as in timm (123, 117, 104 for CLIP's)."""
        red, green, blue = (min(255, max(0, round(255 * m))) for m in self.mean)
        return red, green, blue


@lru_cache
def parse_augment(text: str) -> AutoAugment:
    """Parse an augmentation string.

    Raises:
        UserError: it is invalid. The message names the invalid part and the valid keys.
    """
    kind, *parts = re.split(r"-(?=[a-zA-Z])", text.strip())  # in "d-1", the minus belongs to the number
    if kind not in KINDS:
        raise UserError(f"augmentation {text!r}: {kind!r} is unknown. Begin with one of {', '.join(KINDS)}")
    keys, build = KINDS[kind]
    return build(text, _read_keys(text, parts, keys))


# -- grammar -----------------------------------------------------------------------------------------------------------

Bounds = tuple[type, float, float]  # type, minimum, maximum

RAND_KEYS: dict[str, Bounds | None] = {
    "m": (int, 0, 100),
    "n": (int, 1, MAX_OPS),
    "mstd": (float, 0, math.inf),
    "mmax": (int, 1, 100),
    "inc": (int, 0, 1),
    "p": (float, 0, 1),
    "t": None,  # a name in OP_SETS
}
AUGMIX_KEYS: dict[str, Bounds | None] = {
    "m": (int, 0, 10),
    "w": (int, 1, MAX_CHAINS),
    "d": (int, -1, CHAIN_DEPTH),
    "a": (float, 0.2, 1e3),  # smaller values make weights underflow in float32
    "mstd": (float, 0, math.inf),
}
UNIFORM_ABOVE = 100.0  # timm: a standard deviation above this means "uniform in 0..m"


def _read_keys(text: str, parts: list[str], keys: dict[str, Bounds | None]) -> dict[str, Any]:
    """Read ["m9", ...] into {"m": 9, ...}. Every part must be a known key with a number in its range."""
    values: dict[str, Any] = {}
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(-?[0-9]+(?:\.[0-9]*)?)", part)
        key, value = match.groups() if match else ("", "")
        if "t" in keys and part[0] == "t":  # its value is a name: t3aw
            key, value = "t", part[1:]
        if key not in keys or key in values:
            problem = "appears twice" if key in values else "is not understood"
            raise UserError(f"augmentation {text!r}: {part!r} {problem}. Valid keys: {', '.join(keys) or 'none'}")
        values[key] = _read_value(text, part, value, keys[key])
    return values


def _read_value(text: str, part: str, value: str, bounds: Bounds | None) -> Any:
    if bounds is None:
        if value not in OP_SETS:
            raise UserError(f"augmentation {text!r}: {part!r} is not an op set. Use t followed by {', '.join(OP_SETS)}")
        return value
    kind, least, greatest = bounds
    if (kind is int and "." in value) or not least <= float(value) <= greatest:
        number = "a whole number" if kind is int else "a number"
        raise UserError(f"augmentation {text!r}: {part!r} needs {number} from {least:g} to {greatest:g}")
    return kind(value)


def _rand(text: str, keys: dict[str, Any]) -> RandAugment:
    named = keys.get("t")
    if named is not None and "inc" in keys:
        raise UserError(f"augmentation {text!r}: t already selects the ops. Remove inc")
    weights = dict.fromkeys(INCREASING_OPS if keys.get("inc") else PLAIN_OPS, 1.0)
    if named is not None:
        weights = OP_SETS[named]
    std = keys.get("mstd", 0.0)
    return RandAugment(
        ops=tuple(weights),
        weights=tuple(weights.values()),
        replacement=named is None or named in WITH_REPLACEMENT,
        magnitude=keys.get("m", 10),
        magnitude_std=math.inf if std > UNIFORM_ABOVE else std,
        magnitude_max=keys.get("mmax", 10),
        count=keys.get("n", 2),
        probability=keys.get("p", 0.5),
    )


def _augmix(text: str, keys: dict[str, Any]) -> AugMix:
    if keys.get("d") == 0:
        raise UserError(
            f"augmentation {text!r}: a depth of 0 is invalid. Use -1 (1 to 3 at random) or 1 to {CHAIN_DEPTH}"
        )
    names = {"m": "magnitude", "mstd": "magnitude_std", "w": "width", "d": "depth", "a": "alpha"}
    return AugMix(**{names[key]: value for key, value in keys.items()})


KINDS: dict[str, tuple[dict[str, Bounds | None], Any]] = {
    "rand": (RAND_KEYS, _rand),
    "3aug": ({"j": (float, 0, 1)}, lambda text, keys: ThreeAugment(keys.get("j", 0.3))),
    "augmix": (AUGMIX_KEYS, _augmix),
    "none": ({}, lambda text, keys: None),
}


# -- checks ------------------------------------------------------------------------------------------------------------


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name} is {value!r}. Use one of {', '.join(choices)}")


def _in_range(name: str, value: float, least: float, greatest: float) -> None:
    if not least <= value <= greatest:
        raise UserError(f"{name} is {value}. Give a number from {least} to {greatest}")


def _ordered(name: str, pair: tuple[float, float], greatest: float) -> None:
    if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= greatest:
        raise UserError(f"{name} is {pair}. Give two numbers, 0 < low <= high <= {greatest:g}")
