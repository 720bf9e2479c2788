"""From sample ids to images and labels, one batch at a time: reading, decoding and augmentation.

A stage is plain Python around one call of a compiled function. The function reports errors as codes, which become
exceptions here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch

from beton_tools.jpeg.turbo import close_decoders, open_decoders
from beton_tools.read.beton_set import BetonSet
from fastft.augment.cpu import CpuAugment
from fastft.augment.geometry import source_regions
from fastft.augment.policies import AugmentPolicy
from fastft.data.clock import WorkClock
from fastft.data.decode import CHANNELS, Scratch, decode_and_augment, find_stored
from fastft.data.sample_error import SampleError, raise_for_code

DrawPlan = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(ids, heights, widths) -> plan rows."""


class Stage(ABC):
    """ids (B,) -> images (B, 3, S, S) and labels (B,). Owns a decoder and scratch memory for each thread."""

    device = torch.device("cpu")  # of the images

    def __init__(self, betons: BetonSet, size: int, workers: int) -> None:
        self.betons, self.size = betons, size
        self.labels = betons.labels
        self.decoders = open_decoders(workers)
        self.clock = WorkClock(workers)

    @abstractmethod
    def run(self, ids: np.ndarray, slot: int, draw: DrawPlan) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels of the samples `ids`, augmented as the plan that `draw` returns says.

        slot: which of the stage's buffers to overwrite; no consumer reads the last batch of the same slot any more.

        Raises:
            SampleError: a sample cannot be decoded.
            UserError: the file cannot be read, or changed after it was opened.
        """

    @abstractmethod
    def resize(self, size: int, batch: int) -> None:
        """Make images of another size, `batch` at a time; between two passes. No kernel is compiled."""

    def new_scratch(self, augment_bytes: int = 0) -> Scratch:
        """Scratch memory for the largest image.

        The operating system provides only the pages that are written to.

        Raises:
            SampleError: the memory is too small for the largest image, or for the size that the file states.
        """
        workers, largest = len(self.decoders), self.betons.largest

        def allocate(num_bytes: int) -> np.ndarray:
            return np.empty((workers, num_bytes), np.uint8)

        try:
            return Scratch(
                stored=allocate(largest.num_bytes),
                decode=allocate(largest.pixels_and_bytes),
                pixels=allocate(CHANNELS * largest.pixels),
                augment=allocate(augment_bytes),
            )
        except MemoryError as error:
            heights, widths = self.betons.heights.astype(np.int64), self.betons.widths
            sample = int((heights * widths).argmax())
            reason = f"{heights[sample]} x {widths[sample]} pixels for each of {workers} workers do not fit the memory"
            raise SampleError(self.betons, sample, reason) from error

    def check(self, ids: np.ndarray, codes: np.ndarray) -> None:
        """Raise the error of the first image with a nonzero code."""
        for b in np.flatnonzero(codes)[:1]:
            raise_for_code(self.betons, int(ids[b]), int(codes[b]))

    def pop_timings(self) -> dict[str, float]:
        """Seconds by part of the work since the last call, summed over threads."""
        return self.clock.pop()

    def close(self) -> None:
        """Free the decoders; closing twice is harmless."""
        close_decoders(self.decoders)


class CpuStage(Stage):
    """Decodes and augments each image while it is in cache, and writes it to its place in the batch."""

    def __init__(
        self,
        betons: BetonSet,
        policy: AugmentPolicy,
        size: int,
        dtype: torch.dtype,
        *,
        workers: int,
        slots: int,
        batch: int,
    ) -> None:
        self.finish = CpuAugment(policy, size, _name(dtype)).finish
        super().__init__(betons, size, workers)
        self.policy, self.dtype, self.slots = policy, dtype, slots
        self.resize(size, batch)

    def resize(self, size: int, batch: int) -> None:
        self.size = size
        augment = CpuAugment(self.policy, size, _name(self.dtype))
        self.batches = [augment.new_output(batch) for _ in range(self.slots)]
        largest = self.betons.largest
        self.scratch = self.new_scratch(augment.new_scratch(1, largest.height, largest.width).nbytes)

    def run(self, ids: np.ndarray, slot: int, draw: DrawPlan) -> tuple[torch.Tensor, torch.Tensor]:
        stored = find_stored(self.betons, ids)
        plan = draw(ids, stored.height, stored.width)
        out = self.batches[slot][: len(ids)]
        codes = np.empty(len(ids), np.int64)
        decode_and_augment(
            stored,
            source_regions(plan, self.size),
            plan,
            self.finish,
            self.scratch,
            self.decoders,
            out,
            codes,
            self.clock.spent,
        )
        self.check(ids, codes)
        images = torch.from_numpy(out).view(self.dtype).permute(0, 3, 1, 2)
        return images, torch.from_numpy(self.labels[ids])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
