"""From sample ids to images and labels: the operations of FFCV's pipeline.

FFCV compiles a pipeline's first stage anew for every loader, and an error in compiled code has no way out. So
the first stage only passes the ids on, and the work is a stage of plain Python: one call of an njit function,
compiled once per machine, whose error codes become exceptions here.
"""

from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State

from beton_tools.errors import UserError
from beton_tools.format import Beton
from beton_tools.jpeg.markers import describe_error
from beton_tools.jpeg.turbo import close_decoders, open_decoders
from beton_tools.manifest import Manifest
from fastft.augment.cpu import REASONS, CpuAugment
from fastft.augment.geometry import source_regions
from fastft.augment.policies import AugmentPolicy
from fastft.data.clock import WorkClock
from fastft.data.decode import CHANNELS, Room, decode_and_augment, decode_packed, look_up

DrawPlan = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(ids, heights, widths) -> plan rows."""

DeviceAugment = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(pixels uint8 (n,), offsets int64 (B + 1,), plan uint8 (B * itemsize,)), on the device, -> (B, 3, S, S).

Image b is `pixels[offsets[b] : offsets[b + 1]]`, the plan's source region as packed RGB rows. Called on the
slot's stream, without a wait for its end.
"""

ALIGNMENT = 64  # bytes, of the parts of a packed buffer: a view of any dtype may begin there
HEADROOM = 1.25  # a buffer that must grow takes this much more, and soon has stopped growing


class SampleError(UserError):
    """A sample that does not decode; names it and, if there is a manifest, where it came from."""

    def __init__(self, beton: Beton, sample: int, reason: str) -> None:
        self.sample = sample
        source = ""
        with suppress(UserError, IndexError):  # a broken manifest must not hide this error
            if (manifest := Manifest.of_beton(beton.path)) is not None:
                source = f" ({manifest.names[sample]})"
        super().__init__(
            f"{beton.path}: sample {sample}{source}: {reason}; list all such with `beton verify`"
        )


class SampleIds(SimpleRGBImageDecoder):
    """Stands where FFCV wants a decoder of the image field, and passes the batch's ids on."""

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, None]:
        return replace(previous_state, jit_mode=True, shape=(), dtype=np.dtype(np.int64)), None

    def generate_code(self) -> Callable:
        def sample_ids(ids, memory, metadata, storage_state):  # type: ignore[no-untyped-def]
            return ids

        return sample_ids


class Stage(Operation):
    """ids (B,) -> images (B, 3, S, S) and labels (B,). Owns a decoder and scratch for each thread."""

    device = torch.device("cpu")  # that the images are on
    draw: DrawPlan  # of the epoch that runs
    slot: int  # of the batch that runs; nobody reads any more what the last batch of this slot wrote

    def __init__(self, beton: Beton, size: int, workers: int) -> None:
        super().__init__()
        self.beton, self.size = beton, size
        self.labels = beton.labels
        pixels = CHANNELS * beton.heights.astype(np.int64) * beton.widths
        self.largest = int(pixels.max())  # bytes of the largest image
        self.scratch = np.empty((workers, int((pixels + beton.sizes).max())), np.uint8)
        self.decoders = open_decoders(workers)
        self.clock = WorkClock(workers)

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, None]:
        """Asks FFCV for no memory: it allocates anew for every epoch."""
        return replace(previous_state, jit_mode=False), None

    def generate_code(self) -> Callable:
        return lambda ids, memory: self.run(ids)

    @abstractmethod
    def run(self, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]: ...

    def check(self, ids: np.ndarray, codes: np.ndarray) -> None:
        """Raise SampleError for the first image with an error code."""
        for b in np.flatnonzero(codes)[:1]:
            reason = describe_error(codes[b]) if codes[b] > 0 else REASONS[-codes[b]]
            raise SampleError(self.beton, int(ids[b]), reason)

    def take_work(self) -> dict[str, float]:
        """Seconds by part of the work since the last call: of threads, and of the GPU where it does the part."""
        return self.clock.take()

    def close(self) -> None:
        close_decoders(self.decoders)


class CpuStage(Stage):
    """Decodes and augments each image in one go, straight into the batch."""

    def __init__(
        self,
        beton: Beton,
        policy: AugmentPolicy,
        size: int,
        workers: int,
        *,
        slots: int,
        batch: int,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(beton, size, workers)
        self.dtype = dtype
        augment = CpuAugment(policy, size, str(dtype).removeprefix("torch."))
        self.finish = augment.finish
        self.batches = [augment.new_output(batch) for _ in range(slots)]
        pixels = np.empty((workers, self.largest), np.uint8)
        height, width = int(beton.heights.max()), int(beton.widths.max())
        self.room = Room(self.scratch, pixels, augment.new_scratch(workers, height, width))

    def run(self, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        stored = look_up(self.beton, ids)
        plan = self.draw(ids, stored.height, stored.width)
        regions = source_regions(plan, self.size)
        out = self.batches[self.slot][: len(ids)]
        codes = np.empty(len(ids), np.int64)
        decode_and_augment(
            self.beton.data,
            stored,
            regions,
            plan,
            self.finish,
            self.room,
            self.decoders,
            out,
            codes,
            self.clock.spent,
        )
        self.check(ids, codes)
        images = torch.from_numpy(out).view(self.dtype).permute(0, 3, 1, 2)
        return images, torch.from_numpy(self.labels[ids])


class PackedStage(Stage):
    """For a GPU: decodes into one pinned buffer, copies its used bytes, augments on the device."""

    def __init__(
        self,
        beton: Beton,
        size: int,
        workers: int,
        *,
        slots: int,
        device: torch.device,
        augment: DeviceAugment,
    ) -> None:
        super().__init__(beton, size, workers)
        self.device, self.augment = device, augment
        self.buffers = [PinnedBuffer(device) for _ in range(slots)]
        self.marks: deque[list[Any]] = (
            deque()
        )  # events of each batch: before the copy, after it, after augmentation

    def run(self, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        stored = look_up(self.beton, ids)
        plan = self.draw(ids, stored.height, stored.width)
        regions = source_regions(plan, self.size)
        offsets = np.append(0, np.cumsum(CHANNELS * regions[:, 2].astype(np.int64) * regions[:, 3]))
        tables = [plan.view(np.uint8), offsets.view(np.uint8), self.labels[ids].view(np.uint8)]
        begins = _aligned([len(table) for table in tables])
        buffer = self.buffers[self.slot]
        host = buffer.reserve(begins[-1] + int(offsets[-1]))
        for begin, table in zip(begins, tables, strict=False):
            host[begin : begin + len(table)] = table
        codes = np.empty(len(ids), np.int64)
        pixels = host[begins[-1] :]
        decode_packed(
            self.beton.data,
            stored,
            regions,
            offsets,
            pixels,
            self.scratch,
            self.decoders,
            codes,
            self.clock.spent,
        )
        self.check(ids, codes)
        marks = [self._mark()]
        there = buffer.copy(len(host))
        marks.append(self._mark())
        plan_, offsets_, labels_ = (
            there[begin : begin + len(table)] for begin, table in zip(begins, tables, strict=False)
        )
        images = self.augment(there[begins[-1] :], offsets_.view(torch.int64), plan_)
        marks.append(self._mark())
        if self.device.type == "cuda":
            self.marks.append(marks)
        return images, labels_.view(torch.int64)

    def _mark(self) -> torch.cuda.Event | None:
        """A point of time in the slot's stream; nothing waits for it."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def take_work(self) -> dict[str, float]:
        seconds = self.clock.take() | {"copy": 0.0}
        while self.marks and self.marks[0][-1].query():
            begun, copied, augmented = self.marks.popleft()
            seconds["copy"] += begun.elapsed_time(copied) / 1e3
            seconds["augment"] += copied.elapsed_time(augmented) / 1e3
        return seconds


def _aligned(lengths: list[int]) -> list[int]:
    """Where parts of these lengths begin, and where the next one would."""
    padded = [-(-length // ALIGNMENT) * ALIGNMENT for length in lengths]
    return [0, *np.cumsum(padded).tolist()]


class PinnedBuffer:
    """Page-locked bytes for one slot, filled on the host and copied to the device, again and again."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.on_gpu = device, device.type == "cuda"
        self.memory = torch.empty(0, dtype=torch.uint8)
        self.copied = torch.cuda.Event(blocking=True) if self.on_gpu else None  # waits without a core

    def reserve(self, num_bytes: int) -> np.ndarray:
        """`num_bytes` to write to, after the last copy out of them has ended (FFCV does not wait for it)."""
        if self.copied is not None:
            self.copied.synchronize()
        if num_bytes > len(self.memory):
            capacity = int(num_bytes * HEADROOM)
            self.memory = torch.empty(capacity, dtype=torch.uint8, pin_memory=self.on_gpu)
        return self.memory[:num_bytes].numpy()

    def copy(self, num_bytes: int) -> torch.Tensor:
        """The first bytes, on the device; queued on the current stream."""
        there = self.memory[:num_bytes].to(self.device, non_blocking=True)
        if self.copied is not None:
            self.copied.record(torch.cuda.current_stream(self.device))
        return there
