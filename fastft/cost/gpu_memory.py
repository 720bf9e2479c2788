"""GPU memory that a run takes: a part that does not depend on the micro-batch, and a part for each image in it.

This is a model. The state is counted from the parameters, the memory for an image comes from a traced step
(`fastft.cost.traffic`), and the loader's buffers assume ImageNet images with their longest side at 500 px. The memory
that CUDA and its libraries take, about 1 GB, is left out.
"""

from dataclasses import dataclass

import torch

from beton_tools.base.pixels import CHANNELS
from beton_tools.base.typed_json import Document
from fastft.augment.policies import AugmentPolicy, AugMix
from fastft.augment.recipe_policy import build_policy
from fastft.cost.traffic import image_traffic
from fastft.data.slots import count_slots
from fastft.recipe import Recipe

HEADROOM = 0.9  # use this fraction of the free memory. The rest is for allocator fragments
TENSOR_CORE_MULTIPLE = 8  # matrix products are fastest if their dimensions are multiples of this
COPIES = 3  # trained parameters need three fp32 copies beside the weights: gradients and AdamW's two moments
# Bytes per pixel and channel that GPU augmentation takes in addition to the finished images: two uint8 images, or for
# AugMix three and their mixture in fp32 (fastft.augment.cuda).
AUGMENT_BYTES, AUGMIX_BYTES = 2, 3 + 4
MEAN_PIXELS = 500 * 375  # pixels in a stored image, if the file is not known
SHARD = (
    "fastft does not shard a model over GPUs, as torchtitan and Composer do with FSDP (docs/when-not.md). "
    "--model.trainable_layers=N trains only the last N blocks"
)


class MemoryRow(Document):
    """A `MemoryNeed` in JSON."""

    gb: float
    card_gb: float
    state_gb: float
    micro_batch: int
    fits: bool


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes needed on one GPU with `card` bytes.

    micro_batch: images per forward pass, or 0 if the smallest one does not fit.
    """

    state: float
    per_image: float
    card: float
    micro_batch: int
    smallest: int

    @property
    def needed(self) -> float:
        """Return the bytes needed with the micro-batch, or with the smallest one if none fits."""
        return self.state + (self.micro_batch or self.smallest) * self.per_image

    @property
    def fits(self) -> bool:
        return bool(self.micro_batch) and self.needed <= self.card

    def row(self) -> MemoryRow:
        return MemoryRow(
            gb=self.needed / 1e9, card_gb=self.card / 1e9, state_gb=self.state / 1e9,
            micro_batch=self.micro_batch or self.smallest, fits=self.fits,
        )  # fmt: skip


def state_bytes(parameters: int, trained: int, *, ema: bool, half: bool) -> int:
    """Return the bytes for weights, gradients, AdamW's moments and EMA.

    Args:
        half: include the copy that half-precision training runs.
    """
    return 4 * parameters + 4 * (COPIES + ema) * trained + 2 * (parameters + trained) * half


def loader_bytes(mean_pixels: float, image_size: int, dtype: torch.dtype, batches: int, policy: AugmentPolicy) -> float:
    """Return the GPU memory that a loader needs per image in a micro-batch.

    Args:
        mean_pixels: how many pixels a stored image has on average.
        batches: how many batches are finished, in use or in progress at a time. For each batch, the loader holds the
            decoded pixels (at most the whole images), the finished images, and augmentation's working memory, which
            PyTorch keeps for the next batch.
    """
    augment = AUGMIX_BYTES if isinstance(policy.auto_augment, AugMix) else AUGMENT_BYTES
    return batches * CHANNELS * (mean_pixels + image_size**2 * (augment + dtype.itemsize))


def memory_need(recipe: Recipe, path: str, card: float, gpus: int) -> MemoryNeed | None:
    """Return the memory that a recipe needs on each of `gpus` GPUs, with its micro-batch or the largest one that fits.

    Returns None if the recipe cannot be traced.

    Args:
        path: as in `image_traffic`.
        card: bytes on one GPU.
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


def describe_no_fit(need: MemoryRow) -> str:
    """Describe why a recipe does not fit."""
    usable = HEADROOM * need.card_gb  # the rest is for fragments
    return (
        f"does not fit: it takes {need.gb:,.1f} GB with micro-batches of {need.micro_batch}, and {usable:,.1f} of the GPU's "
        f"{need.card_gb:,.0f} GB can be used"
    )


def describe_too_large(needed: float, there: float) -> str:
    """Return the sentence about a model whose state alone exceeds a GPU's memory."""
    return (
        f"weights, gradients, AdamW's moments and EMA take {needed / 1e9:,.1f} GB, and this GPU has {there / 1e9:,.1f} GB. "
        f"{SHARD}"
    )


def largest_divisor(number: int, at_most: int, unit: int = 1) -> int:
    """Return the largest divisor of `number` that is a multiple of `unit` and at most `at_most`, or else `unit`.

    `unit` is a divisor of `number` itself.
    """
    parts = number // unit
    return unit * max(d for d in range(1, max(1, min(number, at_most) // unit) + 1) if parts % d == 0)


def fast_divisor(number: int, at_most: int, unit: int = 1) -> int:
    """Return the same as `largest_divisor`, but a multiple of 8 if one exists that is at least half as large."""
    largest = largest_divisor(number, at_most, unit)
    if number % TENSOR_CORE_MULTIPLE == 0 and at_most >= TENSOR_CORE_MULTIPLE:
        fast = largest_divisor(number, at_most, TENSOR_CORE_MULTIPLE)
        return fast if 2 * fast >= largest else largest
    return largest
