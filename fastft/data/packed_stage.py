"""The stage for a GPU: decode on the host, copy the decoded regions in one piece, augment on the device."""

from collections import deque
from typing import Any, Protocol

import numpy as np
import torch

from beton_tools.read.beton_set import BetonSet
from fastft.augment.geometry import source_regions
from fastft.data.decode import CHANNELS, decode_packed, find_stored
from fastft.data.stage import DrawPlan, Stage


class DeviceAugment(Protocol):
    """Augmentation on the device."""

    def __call__(self, packed: torch.Tensor, offsets: torch.Tensor, plan: torch.Tensor, /) -> torch.Tensor:
        """(pixels uint8 (n,), offsets int64 (B + 1,), plan uint8 (B * itemsize,)), on the device, -> (B, 3, S, S).

        Image b is `pixels[offsets[b] : offsets[b + 1]]`, the plan's source region as packed RGB rows. The work is queued on
        the current stream; the function returns before it has ended.
        """

    def at(self, size: int) -> "DeviceAugment":
        """The same for images of another size."""


ALIGNMENT = 64  # bytes, of the parts of a packed buffer: a view of any dtype may begin there
HEADROOM = 1.25  # a buffer that must grow takes this much more, so that it soon stops growing


class PackedStage(Stage):
    """Decodes into one pinned buffer per slot, copies the used bytes to the device, augments them there."""

    def __init__(
        self,
        betons: BetonSet,
        size: int,
        device: torch.device,
        augment: DeviceAugment,
        *,
        workers: int,
        slots: int,
    ) -> None:
        super().__init__(betons, size, workers)
        self.device, self.augment = device, augment
        self.scratch = self.new_scratch()
        self.buffers = [PinnedBuffer(device) for _ in range(slots)]
        # CUDA events of each batch: before the copy, after it, after augmentation
        self.events: deque[list[Any]] = deque()

    def resize(self, size: int, batch: int) -> None:
        self.size, self.augment = size, self.augment.at(size)  # buffers grow with the batches

    def run(self, ids: np.ndarray, slot: int, draw: DrawPlan) -> tuple[torch.Tensor, torch.Tensor]:
        stored = find_stored(self.betons, ids)
        plan = draw(ids, stored.height, stored.width)
        regions = source_regions(plan, self.size)
        offsets = np.append(0, np.cumsum(CHANNELS * regions[:, 2].astype(np.int64) * regions[:, 3]))
        tables = [plan.view(np.uint8), offsets.view(np.uint8), self.labels[ids].view(np.uint8)]
        begins = _aligned([len(table) for table in tables])
        buffer = self.buffers[slot]
        host = buffer.reserve(begins[-1] + int(offsets[-1]))
        for begin, table in zip(begins, tables, strict=False):
            host[begin : begin + len(table)] = table
        codes = np.empty(len(ids), np.int64)
        pixels = host[begins[-1] :]
        decode_packed(stored, regions, offsets, pixels, self.scratch, self.decoders, codes, self.clock.spent)
        self.check(ids, codes)
        events = [self._record_event()]
        copied = buffer.copy(len(host))
        events.append(self._record_event())
        plan_bytes, offsets_bytes, label_bytes = (
            copied[begin : begin + len(table)] for begin, table in zip(begins, tables, strict=False)
        )
        images = self.augment(copied[begins[-1] :], offsets_bytes.view(torch.int64), plan_bytes)
        events.append(self._record_event())
        if self.device.type == "cuda":
            self.events.append(events)
        return images, label_bytes.view(torch.int64)

    def _record_event(self) -> torch.cuda.Event | None:
        """A timing event in the current stream; None on a CPU."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def pop_timings(self) -> dict[str, float]:
        """As `Stage.pop_timings`; `copy` and `augment` are seconds of the GPU, of the batches that it has finished."""
        seconds = super().pop_timings() | {"copy": 0.0}
        while self.events and self.events[0][-1].query():
            begun, copied, augmented = self.events.popleft()
            seconds["copy"] += begun.elapsed_time(copied) / 1e3
            seconds["augment"] += copied.elapsed_time(augmented) / 1e3
        return seconds


def _aligned(lengths: list[int]) -> list[int]:
    """Aligned offsets of parts with these lengths, and of the part that follows them."""
    padded = [-(-length // ALIGNMENT) * ALIGNMENT for length in lengths]
    return [0, *np.cumsum(padded).tolist()]


class PinnedBuffer:
    """Page-locked bytes of one slot, which every batch of the slot fills on the host and copies to the device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.on_gpu = device, device.type == "cuda"
        self.memory = torch.empty(0, dtype=torch.uint8)
        # blocking: the host thread sleeps while it waits
        self.copied = torch.cuda.Event(blocking=True) if self.on_gpu else None

    def reserve(self, num_bytes: int) -> np.ndarray:
        """`num_bytes` to write to. Waits until the last copy from the buffer has ended, which FFCV does not."""
        if self.copied is not None:
            self.copied.synchronize()
        if num_bytes > len(self.memory):
            capacity = int(num_bytes * HEADROOM)
            self.memory = torch.empty(capacity, dtype=torch.uint8, pin_memory=self.on_gpu)
        return self.memory[:num_bytes].numpy()

    def copy(self, num_bytes: int) -> torch.Tensor:
        """The first `num_bytes` on the device; the copy is queued on the current stream."""
        copied = self.memory[:num_bytes].to(self.device, non_blocking=True)
        if self.copied is not None:
            self.copied.record(torch.cuda.current_stream(self.device))
        return copied
