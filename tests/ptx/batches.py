"""Batches to run on both back ends: plans, and real photographs cut down to what the plans touch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastft.augment.cpu import CpuAugment
from fastft.augment.draw import draw_plan, eval_plan
from fastft.augment.plan import OP_ID, OPS, TIMM_OPS
from fastft.augment.policies import AugmentPolicy
from fastft.augment.resize import source_regions
from fastft.recipe.constants import ERASE_MODES
from tests.augment.single_ops import level_argument
from tests.ptx.gpu import SimulatedGpu

GAP = 37  # bytes between packed regions where nothing may be read
POLICIES: dict[str, tuple[str, dict[str, object]]] = {
    "paper": ("rand-m9-mstd0.5-inc1", {}),
    "erase": ("rand-m9-n3-p0.8-mstd0.5-inc1", {"erase_prob": 1.0, "erase_count": 3}),
    "3aug": ("3aug", {"crop": "src"}),
    "augmix": ("augmix", {"color_jitter": 0.4, "color_jitter_prob": 0.5}),
    "augmix deep": ("augmix-m5-w4-d2", {}),
    "none": ("none", {"vflip": 0.5, "quarter_turns": 0.8, "color_jitter": 0.4}),
}


@dataclass(frozen=True)
class Batch:
    policy: AugmentPolicy
    size: int
    plan: np.ndarray
    packed: np.ndarray  # uint8
    offsets: np.ndarray
    filled: np.ndarray  # bool per byte of packed

    def expected(self, dtype: str) -> np.ndarray:
        """Images of the CPU back end, (B, size, size, 3)."""
        return CpuAugment(self.policy, self.size, dtype)(self.packed, self.offsets, self.plan)

    def on(self, gpu: SimulatedGpu, dtype: str) -> np.ndarray:
        """The same from the CUDA back end."""
        given = self.packed, self.offsets, self.plan, self.filled
        return gpu.augment(self.policy, self.size, getattr(torch, dtype), *given)

    def ops(self, image: int) -> str:
        return ", ".join(OPS[op].name for op in self.plan["op"][image] if op) or "no op"


def pack(policy: AugmentPolicy, size: int, plan: np.ndarray, images: Sequence[np.ndarray]) -> Batch:
    """The regions that the plan touches, with gaps before, between and behind."""
    regions = source_regions(plan, size)
    pieces = [im[y : y + h, x : x + w].reshape(-1) for im, (y, x, h, w) in zip(images, regions, strict=True)]
    offsets = GAP + np.cumsum([0, *(len(piece) + GAP for piece in pieces)])
    packed, filled = np.zeros(offsets[-1], np.uint8), np.zeros(offsets[-1], bool)
    for piece, offset in zip(pieces, offsets[:-1], strict=True):
        packed[offset : offset + len(piece)] = piece
        filled[offset : offset + len(piece)] = True
    return Batch(policy, size, plan, packed, offsets[:-1].astype(np.int64), filled)


def drawn(name: str, images: Sequence[np.ndarray], size: int, *, seed: int = 0) -> Batch:
    """A plan of the policy of that name for every image; both filters, all erase modes."""
    text, options = POLICIES[name]
    policy = AugmentPolicy(text, **options)
    ids = np.arange(len(images))
    heights, widths = np.array([image.shape[:2] for image in images]).T
    plan = draw_plan(policy, seed=seed, epoch=seed, sample_ids=ids, heights=heights, widths=widths, size=size)
    plan["bicubic"] = ids % 4 > 0
    if name == "erase":
        plan["erase_mode"] = ids % len(ERASE_MODES)
    return pack(policy, size, plan, images)


def with_ops(calls: Sequence[tuple[int, float]], images: Sequence[np.ndarray], size: int) -> Batch:
    """A row for every (op, argument), on the images in turn, cut to size."""
    pictures = [images[k % len(images)][:size, :size] for k in range(len(calls))]
    plan = eval_plan(np.arange(len(calls)), [size] * len(calls), [size] * len(calls), size)
    plan["op"][:, 0], plan["argument"][:, 0] = zip(*calls, strict=True)
    plan["bicubic"] = np.arange(len(calls)) % 4 > 0
    return pack(AugmentPolicy("none"), size, plan, pictures)


def squeezed(images: Sequence[np.ndarray], size: int) -> Batch:
    """Whole images, whatever their shape, resized to size x size without an op."""
    ids = np.arange(len(images))
    heights, widths = np.array([image.shape[:2] for image in images]).T
    plan = eval_plan(ids, heights, widths, size)
    plan["resize"], plan["window"] = size, 0
    return pack(AugmentPolicy("none"), size, plan, images)


def every_op(
    images: Sequence[np.ndarray], size: int, magnitudes: Sequence[tuple[float, int]] = ((8.7, 1), (6.3, -1))
) -> Batch:
    """Each of timm's ops at each (magnitude, sign), and the ops that timm lacks."""
    calls = [level_argument(name, m, s, height=size, width=size) for name in TIMM_OPS for m, s in magnitudes]
    lacking = [(OP_ID[op.name], 100.0) for op in OPS if not op.timm]
    return with_ops([*dict.fromkeys(calls), *lacking, (OP_ID["GaussianBlur"], 0.0)], images, size)


def enhancements_by_tenths(images: Sequence[np.ndarray], size: int) -> Batch:
    """Factors k/10, whose products are often nearly whole: a fused multiply-add would change bytes."""
    names = "Color", "Contrast", "Brightness", "Sharpness"
    return with_ops([(OP_ID[name], k / 10) for name in names for k in range(1, 20, 2)], images, size)


def cut_pieces(
    photographs: Sequence[np.ndarray], count: int, sides: tuple[int, int], seed: int = 0
) -> list[np.ndarray]:
    """Pieces of photographs of random height and width between ``sides``."""
    generator = np.random.default_rng(seed)
    pieces = []
    for k in range(count):
        image = photographs[k % len(photographs)]
        height, width = (
            min(int(n), limit) for n, limit in zip(generator.integers(*sides, 2), image.shape, strict=False)
        )
        y, x = (
            int(generator.integers(0, limit - n + 1)) for n, limit in zip((height, width), image.shape, strict=False)
        )
        pieces.append(np.ascontiguousarray(image[y : y + height, x : x + width]))
    return pieces
