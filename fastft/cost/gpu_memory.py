"""GPU memory that a training takes: what does not depend on the micro-batch, and what each of its images adds.

A model: state is counted from the parameters, an image from a traced step (`fastft.cost.traffic`), its loader's buffers from
images of ImageNet with their longest side at 500 px. Left out: what CUDA and its libraries take, about 1 GB.
"""

from dataclasses import dataclass
from typing import Any

import torch

from fastft.augment.policies import AugmentPolicy, AugMix
from fastft.augment.recipe_policy import build_policy
from fastft.cost.traffic import image_traffic
from fastft.data.slots import count_slots
from fastft.recipe import Recipe

HEADROOM = 0.9  # share of free memory to use; the rest is for allocator fragments
TENSOR_CORE_MULTIPLE = 8  # matrix products are fastest if their dimensions are multiples of this
COPIES = 3  # of what is trained, in fp32, beside the weights: gradients and AdamW's two moments
# bytes of a pixel's channel that augmentation on a GPU takes beside the finished images: two uint8 images, of AugMix three and
# their mixture in fp32 (fastft.augment.cuda)
AUGMENT_BYTES, AUGMIX_BYTES = 2, 3 + 4
MEAN_PIXELS = 500 * 375  # of a stored image, where the file is not known
SHARD = (
    "fastft does not shard a model over GPUs, as FSDP of torchtitan and Composer does (docs/when-not.md); "
    "--model.trainable_layers=N trains the last N blocks only"
)


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes on one GPU of `card` bytes. micro_batch: images of a forward pass; 0 if the smallest one does not fit."""

    state: float
    per_image: float
    card: float
    micro_batch: int
    smallest: int

    @property
    def needed(self) -> float:
        """With the micro-batch, or with the smallest one."""
        return self.state + (self.micro_batch or self.smallest) * self.per_image

    @property
    def fits(self) -> bool:
        return bool(self.micro_batch) and self.needed <= self.card

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: gb, card_gb, state_gb, micro_batch, fits."""
        return {
            "gb": self.needed / 1e9, "card_gb": self.card / 1e9, "state_gb": self.state / 1e9,
            "micro_batch": self.micro_batch or self.smallest, "fits": self.fits,
        }  # fmt: skip


def state_bytes(parameters: int, trained: int, *, ema: bool, half: bool) -> int:
    """Bytes of weights, gradients, AdamW's moments and EMA. half: with the copy that half-precision training runs."""
    return 4 * parameters + 4 * (COPIES + ema) * trained + 2 * (parameters + trained) * half


def loader_bytes(mean_pixels: float, image_size: int, dtype: torch.dtype, batches: int, policy: AugmentPolicy) -> float:
    """GPU memory that a loader needs per image of a micro-batch; mean_pixels: of the stored images.

    batches: that are finished, in use or in progress at a time. Of each it holds the decoded pixels, at most the whole
    images, the finished images, and what augmentation worked with, which PyTorch keeps for the next batch.
    """
    augment = AUGMIX_BYTES if isinstance(policy.auto_augment, AugMix) else AUGMENT_BYTES
    return batches * 3 * (mean_pixels + image_size**2 * (augment + dtype.itemsize))


def memory_need(recipe: Recipe, path: str, card: float, gpus: int) -> MemoryNeed | None:
    """What a recipe takes on each of so many GPUs, with its micro-batch or the largest that fits; None if it cannot be traced.

    path: as of `image_traffic`. card: bytes of a GPU.
    """
    traced = image_traffic(recipe, path)
    if traced is None:
        return None
    state = state_bytes(traced.parameters, traced.trained_parameters, ema=recipe.ema.decay > 0, half=path == "half")
    batches, size = count_slots(recipe.data.batches_ahead), recipe.model.image_size
    per_image = traced.kept_bytes_per_image
    loaders = 1 if recipe.data.val is None else 2
    per_image += loaders * loader_bytes(MEAN_PIXELS, size, torch.float16, batches, build_policy(recipe))
    unit = 2 if recipe.augment.mixes else 1
    fitting = int((HEADROOM * card - state) / per_image)
    micro_batch = recipe.train.micro_batch
    if not micro_batch and fitting >= unit:
        micro_batch = fast_divisor(max(unit, recipe.optim.batch_size // gpus), fitting, unit)
    return MemoryNeed(state, per_image, card, micro_batch, unit)


def describe_no_fit(need: dict[str, Any]) -> str:
    """need: `MemoryNeed.as_dict`."""
    return (
        f"does not fit: {need['gb']:,.0f} GB with micro-batches of {need['micro_batch']}, of {need['card_gb']:,.0f} GB"
    )


def describe_too_large(needed: float, there: float) -> str:
    """The sentence about a model whose state alone exceeds a GPU's memory."""
    return (
        f"weights, gradients, AdamW's moments and EMA take {needed / 1e9:,.1f} GB, and this GPU has {there / 1e9:,.1f} GB; "
        f"{SHARD}"
    )


def largest_divisor(number: int, at_most: int, unit: int = 1) -> int:
    """The largest divisor of `number` that is a multiple of `unit` (a divisor itself) and not above `at_most`, or `unit`."""
    parts = number // unit
    return unit * max(d for d in range(1, max(1, min(number, at_most) // unit) + 1) if parts % d == 0)


def fast_divisor(number: int, at_most: int, unit: int = 1) -> int:
    """The same as `largest_divisor`, but a multiple of 8 if there is one that is at least half as large."""
    largest = largest_divisor(number, at_most, unit)
    if number % TENSOR_CORE_MULTIPLE == 0 and at_most >= TENSOR_CORE_MULTIPLE:
        fast = largest_divisor(number, at_most, TENSOR_CORE_MULTIPLE)
        return fast if 2 * fast >= largest else largest
    return largest
