"""Draw plans: everything random about an image follows from (seed, epoch, sample id) and nothing else.

Each decision has its own counters in the generator (below), so no draw depends on how many came before it. The
distributions follow timm's and DeiT III's transforms, formula by formula.
"""

import math
from dataclasses import asdict
from functools import lru_cache
from itertools import permutations
from typing import Any, NamedTuple, get_type_hints

import numpy as np

from beton_tools.base.errors import UserError
from beton_tools.base.jit import njit
from fastft.augment import rng
from fastft.augment.levels import argument
from fastft.augment.ops import BRIGHTNESS, COLOR, CONTRAST, GAUSSIAN_BLUR, GRAYSCALE, SOLARIZE
from fastft.augment.plan import CHAIN_DEPTH, HFLIP, JITTER, MAX_OPS, PLAN_DTYPE, TIMM_OPS, TRANSPOSE, VFLIP
from fastft.augment.policies import AugmentPolicy, AugMix, RandAugment, ThreeAugment
from fastft.augment.resize import resized_shape
from fastft.recipe.constants import BICUBIC, ERASE_MODES, SHORTEST, SQUASH

ATTEMPTS = 10  # tries in timm's random resized crop and in its random erasing
ERASE_AREA = (0.02, 1 / 3)  # timm's RandomErasing: share of the output, all boxes together
ERASE_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
SIMPLE_CROP_PADDING = 4  # DeiT III
BLUR_RADIUS = (0.1, 2.0)  # DeiT III
SOLARIZE_THRESHOLD = 128.0  # DeiT III: Pillow's default

# Counter word 0 says what is drawn, word 1 is the epoch, and words 2 and 3 are the sample. The type is np.int64,
# because a function that gets a constant of type int as an argument is compiled again for each value.
CROP = np.int64(0)  # + attempt: area, aspect, top, left
ONCE = np.int64(10)  # flip, erase, number of boxes
NOISE_KEY = np.int64(11)
THREE_JITTER = np.int64(12)  # 3-Augment's colour jitter: order, brightness, contrast, colour
TURN = np.int64(13)  # vertical flip, whether to turn, quarter turns, whether to jitter the colours
COLOR_JITTER = np.int64(14)  # as THREE_JITTER
ERASE = 16  # + ATTEMPTS * box + attempt: area, aspect, top, left
OP = np.int64(64)  # + op: which, whether, sign
MAGNITUDE = 80  # + op: two words for a normal variate, or one for a uniform one
DEPTH = 96  # + chain
WEIGHT = rng.GAMMA_COUNTERS  # + GAMMA_COUNTERS * chain
BLEND = np.int64(rng.GAMMA_COUNTERS * 16)

_, RAND, AUGMIX, THREE = range(4)
KINDS = type(None), RandAugment, AugMix, ThreeAugment


class Parameters(NamedTuple):
    """A policy as numbers, for the compiled code. Every policy has this one type, so the code is compiled once."""

    kind: int
    ops: np.ndarray  # uint8: index into plan.OPS
    rules: np.ndarray  # uint8: rules for levels.argument
    weights: np.ndarray  # float64
    replacement: bool
    magnitude: float
    magnitude_std: float
    magnitude_max: float
    layers: int
    probability: float
    width: int
    depth: int
    alpha: float
    jitter: float
    resized_crop: bool
    scale: tuple[float, float]
    ratio: tuple[float, float]
    log_ratio: tuple[float, float]
    hflip: float
    vflip: float
    quarter_turns: float
    color_jitter: float
    color_jitter_prob: float
    bicubic: int
    erase_prob: float
    erase_mode: int
    erase_count: int


def draw_plan(
    policy: AugmentPolicy, *, seed: int, epoch: int, sample_ids: Any, heights: Any, widths: Any, size: int
) -> np.ndarray:
    """Draw plans for one epoch of samples with heights x widths pixels. Returns `PLAN_DTYPE`, one row per sample.

    A row depends on (policy, seed, epoch, sample id, its height and width, size) and on no other row.

    Args:
        size: side of the square output in pixels.

    Raises:
        UserError: arrays differ in length, or an image is empty.
    """
    samples, rows, columns = _checked(sample_ids, heights, widths, size)
    if policy.crop == "src" and size <= SIMPLE_CROP_PADDING:
        raise UserError(
            f"crop src needs more than {SIMPLE_CROP_PADDING} pixels, but the output has {size}. Use crop rrc"
        )
    plan = np.zeros(len(samples), PLAN_DTYPE)
    _draw_rows(_parameters(policy), np.uint64(seed), epoch, samples, rows, columns, size, plan)
    return plan


def eval_plan(
    sample_ids: Any,
    heights: Any,
    widths: Any,
    size: int,
    crop_pct: float = 1.0,
    interpolation: str = BICUBIC,
    resize: str = SHORTEST,
) -> np.ndarray:
    """Return plans for evaluation.

    The short side, or with "squash" each side, is resized to floor(size / crop_pct), then the central size x size is
    cropped. Both are rounded as in torchvision.

    Raises:
        UserError: `crop_pct` is outside (0, 1], arrays differ in length, or an image is empty.
    """
    if not 0 < crop_pct <= 1:
        raise UserError(f"crop_pct is {crop_pct}. Give a number above 0 and at most 1")
    samples, rows, columns = _checked(sample_ids, heights, widths, size)
    plan = np.zeros(len(samples), PLAN_DTYPE)
    plan["sample"] = samples
    plan["crop"][:, 2], plan["crop"][:, 3] = rows, columns
    plan["bicubic"] = interpolation == BICUBIC
    _fill_centre_windows(plan, math.floor(size / crop_pct), size, resize == SQUASH)
    return plan


def _checked(sample_ids: Any, heights: Any, widths: Any, size: int) -> list[np.ndarray]:
    arrays = [np.ascontiguousarray(a, np.int64).reshape(-1) for a in (sample_ids, heights, widths)]
    lengths = [len(a) for a in arrays]
    if len(set(lengths)) != 1:
        raise UserError(f"{lengths} sample ids, heights and widths. Pass arrays of equal length")
    if size < 1 or (lengths[0] and min(a.min() for a in arrays[1:]) < 1):
        raise UserError("an image or the output has no pixels. Heights, widths and size must be 1 or more")
    return arrays


@lru_cache(maxsize=64)
def _parameters(policy: AugmentPolicy) -> Parameters:
    chosen = policy.auto_augment
    values: dict[str, Any] = asdict(policy)
    for part in (RandAugment((), (), True), AugMix(), ThreeAugment(), *([] if chosen is None else [chosen])):
        values |= asdict(part)
    numbers = [TIMM_OPS[name] for name in (() if isinstance(chosen, ThreeAugment | None) else chosen.ops)]
    values |= {
        "kind": KINDS.index(type(chosen)),
        "ops": np.array([op for op, _ in numbers], np.uint8),
        "rules": np.array([rule for _, rule in numbers], np.uint8),
        "weights": np.array(values["weights"], np.float64),
        "layers": values["count"],
        "resized_crop": policy.crop == "rrc",
        "log_ratio": tuple(map(math.log, policy.ratio)),
        "bicubic": policy.interpolation == "bicubic",
        "erase_mode": ERASE_MODES.index(policy.erase_mode),
    }
    types = get_type_hints(Parameters)
    return Parameters(
        **{name: kind(values[name]) if kind in (int, float) else values[name] for name, kind in types.items()}
    )


# by 0, 90, 180, 270 degrees counter-clockwise
QUARTER_TURNS = np.array([0, HFLIP | TRANSPOSE, HFLIP | VFLIP, VFLIP | TRANSPOSE], np.uint8)


# -- one row -----------------------------------------------------------------------------------------------------------


@njit()
def _draw_rows(p, seed, epoch, samples, heights, widths, size, plan):
    for i in range(len(samples)):
        row = plan[i]
        sample = np.uint64(samples[i])
        who = (seed, np.uint64(epoch), sample & rng.LOW_32, sample >> rng.SHIFT_32)
        row.sample = samples[i]
        row.bicubic = p.bicubic
        if p.resized_crop:
            _draw_resized_crop(p, who, heights[i], widths[i], row)
            row.resize[:] = size
        else:
            _draw_simple_crop(who, heights[i], widths[i], size, row)
        flip, erase, boxes, _ = _words(who, ONCE)
        vertical, turn, quarters, jitter = _words(who, TURN)
        row.flip = rng.unit(flip) < p.hflip
        if rng.unit(vertical) < p.vflip:
            row.flip ^= VFLIP
        if rng.unit(turn) < p.quarter_turns:
            row.flip ^= QUARTER_TURNS[rng.below(quarters, 4)]
        if p.kind == RAND:
            _draw_rand(p, who, size, row)
        elif p.kind == AUGMIX:
            _draw_augmix(p, who, size, row)
        elif p.kind == THREE:
            _draw_three(p, who, row)
        if p.color_jitter > 0.0 and rng.unit(jitter) < p.color_jitter_prob:
            _draw_jitter(who, COLOR_JITTER, np.int64(JITTER), p.color_jitter, row)
        row.erase_mode = p.erase_mode
        if rng.unit(erase) < p.erase_prob:
            _draw_boxes(who, 1 + rng.below(boxes, p.erase_count), size, row)
        low, high, _, _ = _words(who, NOISE_KEY)
        row.noise_key = np.uint64(low) | (np.uint64(high) << rng.SHIFT_32)


@njit()
def _words(who, draw):
    return rng.philox(who[0], draw, who[1], who[2], who[3])


@njit()
def _set_box(box, y, x, h, w):
    box[0], box[1], box[2], box[3] = y, x, h, w


@njit()
def _draw_resized_crop(p, who, height, width, row):
    """Draw timm's RandomResizedCropAndInterpolation. If no try fits, use the centre, clamped to the aspect range."""
    for attempt in range(ATTEMPTS):
        area, aspect, top, left = _words(who, CROP + attempt)
        target = rng.between(area, p.scale[0], p.scale[1]) * (height * width)
        ratio = math.exp(rng.between(aspect, p.log_ratio[0], p.log_ratio[1]))
        w = int(np.rint(math.sqrt(target * ratio)))
        h = int(np.rint(math.sqrt(target / ratio)))
        if 0 < w <= width and 0 < h <= height:
            _set_box(row.crop, rng.below(top, height - h + 1), rng.below(left, width - w + 1), h, w)
            return
    h, w = height, width
    if width / height < p.ratio[0]:
        h = min(height, int(np.rint(width / p.ratio[0])))
    elif width / height > p.ratio[1]:
        w = min(width, int(np.rint(height * p.ratio[1])))
    _set_box(row.crop, (height - h) // 2, (width - w) // 2, h, w)


@njit()
def _draw_simple_crop(who, height, width, size, row):
    """Draw DeiT III's simple crop: short side to `size`, padded by reflection, and a random size x size window."""
    h, w = resized_shape(height, width, size)
    _, _, top, left = _words(who, CROP)
    _set_box(row.crop, 0, 0, height, width)
    row.resize[0], row.resize[1] = h, w
    row.window[0] = rng.below(top, h - size + 2 * SIMPLE_CROP_PADDING + 1) - SIMPLE_CROP_PADDING
    row.window[1] = rng.below(left, w - size + 2 * SIMPLE_CROP_PADDING + 1) - SIMPLE_CROP_PADDING


@njit()
def _draw_rand(p, who, size, row):
    """Draw timm's RandAugment: which ops, and for each one independently whether it is applied.

    If not, it is Identity.
    """
    taken = 0
    for k in range(p.layers):
        which, whether, sign, _ = _words(who, OP + k)
        if p.replacement:
            i = rng.below(which, len(p.ops))
        else:
            i = _weighted(p.weights, which, taken)
            taken |= 1 << i
        if rng.unit(whether) < p.probability:
            _set_op(p, who, k, k, i, sign, size, row)


@njit()
def _weighted(weights, word, taken):
    """Draw an index with probability proportional to its weight, among those that are not in the bit set `taken`."""
    left = 0.0
    for i in range(len(weights)):
        if not taken >> i & 1:
            left += weights[i]
    left *= rng.unit(word)
    last = 0
    for i in range(len(weights)):
        if not taken >> i & 1:
            last = i
            left -= weights[i]
            if left < 0.0:
                break
    return last


@njit()
def _set_op(p, who, draw, slot, i, sign, size, row):
    """Put op i of the policy into a slot, and draw its own magnitude."""
    magnitude = p.magnitude
    if p.magnitude_std > 0.0:
        first, second, _, _ = _words(who, MAGNITUDE + draw)
        if p.magnitude_std == np.inf:
            magnitude = rng.between(first, 0.0, p.magnitude)
        else:
            magnitude += p.magnitude_std * rng.normal(first, second)
    magnitude = max(0.0, min(magnitude, p.magnitude_max))
    row.op[slot] = p.ops[i]
    row.argument[slot] = argument(p.rules[i], magnitude, 1.0 if rng.unit(sign) < 0.5 else -1.0, size, size)


@njit()
def _draw_augmix(p, who, size, row):
    """Draw timm's AugMix: Dirichlet weights over chains of ops, all applied, and a Beta weight for the mixture."""
    total = 0.0
    for chain in range(p.width):
        weight = math.exp(rng.log_gamma_variate(p.alpha, who[0], WEIGHT * (1 + chain), who[1], who[2], who[3]))
        row.chain_weights[chain] = weight
        total += weight
        depth = p.depth if p.depth > 0 else 1 + rng.below(_words(who, DEPTH + chain)[0], CHAIN_DEPTH)
        for k in range(chain * CHAIN_DEPTH, chain * CHAIN_DEPTH + depth):
            which, _, sign, _ = _words(who, OP + k)
            _set_op(p, who, k, k, rng.below(which, len(p.ops)), sign, size, row)
    for chain in range(p.width):
        row.chain_weights[chain] /= total
    row.blend = rng.beta(p.alpha, who[0], BLEND, who[1], who[2], who[3])


JITTER_ORDERS = np.array(list(permutations([BRIGHTNESS, CONTRAST, COLOR])), np.uint8)


@njit()
def _draw_three(p, who, row):
    """Draw DeiT III's 3-Augment: grayscale, solarise or blur, then torchvision's colour jitter."""
    which, radius, _, _ = _words(who, OP)
    choice = rng.below(which, 3)
    if choice == 0:
        row.op[0] = GRAYSCALE
    elif choice == 1:
        row.op[0], row.argument[0] = SOLARIZE, SOLARIZE_THRESHOLD
    else:
        row.op[0], row.argument[0] = GAUSSIAN_BLUR, rng.between(radius, BLUR_RADIUS[0], BLUR_RADIUS[1])
    if p.jitter > 0.0:
        _draw_jitter(who, THREE_JITTER, np.int64(1), p.jitter, row)


@njit()
def _draw_jitter(who, draw, slot, strength, row):
    """Draw torchvision's ColorJitter without hue.

    Brightness, contrast and saturation are changed by factors of 1 +- strength, in random order.
    """
    order, first, second, third = _words(who, draw)
    jitter = (first, second, third)
    for k in range(3):
        row.op[slot + k] = JITTER_ORDERS[rng.below(order, len(JITTER_ORDERS)), k]
        row.argument[slot + k] = rng.between(jitter[k], 1.0 - strength, 1.0 + strength)


@njit()
def _draw_boxes(who, boxes, size, row):
    """Draw timm's RandomErasing: `boxes` boxes that share the area. A box that never fits is left out."""
    for box in range(boxes):
        for attempt in range(ATTEMPTS):
            area, aspect, top, left = _words(who, ERASE + ATTEMPTS * box + attempt)
            target = rng.between(area, ERASE_AREA[0], ERASE_AREA[1]) * (size * size) / boxes
            ratio = math.exp(rng.between(aspect, ERASE_LOG_ASPECT[0], ERASE_LOG_ASPECT[1]))
            h = int(np.rint(math.sqrt(target * ratio)))
            w = int(np.rint(math.sqrt(target / ratio)))
            if w < size and h < size:
                _set_box(row.erase[box], rng.below(top, size - h + 1), rng.below(left, size - w + 1), h, w)
                break


@njit()
def _fill_centre_windows(plan, short_side, size, squash):
    for i in range(len(plan)):
        row = plan[i]
        h, w = (short_side, short_side) if squash else resized_shape(row.crop[2], row.crop[3], short_side)
        row.resize[0], row.resize[1] = h, w
        row.window[0] = int(np.rint((h - size) / 2.0))
        row.window[1] = int(np.rint((w - size) / 2.0))


assert OP + MAX_OPS <= MAGNITUDE and MAGNITUDE + MAX_OPS <= DEPTH
