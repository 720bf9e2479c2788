"""Turn sample ids into images and labels, one batch at a time: reading, decoding and augmentation.

A stage is plain Python around one call to a compiled function. The function reports errors as codes, and they become
exceptions here.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from beton_tools.base.errors import UserError, first_line
from beton_tools.base.extras import install_extra
from beton_tools.base.pixels import CHANNELS
from beton_tools.jpeg.markers import describe_error
from beton_tools.jpeg.turbo import close_decoders, open_decoders
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.manifest import Manifest
from fastft.augment.cpu import REASONS, CpuAugment
from fastft.augment.policies import AugmentPolicy
from fastft.augment.resize import MOST_SHRINK, source_regions
from fastft.data.decode import READ_FAILED, WorkClock, Workers, decode_and_augment, decode_packed, new_job
from fastft.machine.facts import has_numba_cuda

if TYPE_CHECKING:
    from fastft.augment.cuda import CudaAugment

DrawPlan = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(ids, heights, widths) -> plan rows."""


@dataclass(frozen=True)
class Output:
    """The form in which a loader delivers images: (b, 3, size, size), normalised, in channels-last memory.

    On a GPU (`device="cuda"`), augmentation runs there too.
    """

    size: int
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32  # float32, float16 or bfloat16


class SampleError(UserError):
    """A sample that cannot be decoded. The message names the sample and, if there is a manifest, the original image.

    The message contains the sample's id in its file. `sample` is its id among all files.
    """

    def __init__(self, betons: BetonSet, sample: int, reason: str) -> None:
        self.sample = sample
        beton, own_id = betons.locate(sample)
        source = ""
        with suppress(UserError, IndexError):  # a damaged manifest must not replace this error
            if (manifest := Manifest.of_beton(beton.path)) is not None:
                source = f" ({manifest.names[own_id]})"
        super().__init__(f"{beton.path}: sample {own_id}{source}: {reason}. `beton verify` lists all such samples")


class Stage(ABC):
    """Turn ids (B,) into images (B, 3, S, S) and labels (see `targets`).

    A stage owns a decoder and scratch memory for each thread.
    """

    device = torch.device("cpu")  # where the images are

    def __init__(self, betons: BetonSet, size: int, workers: int) -> None:
        self.betons, self.size = betons, size
        self.decoders = open_decoders(workers)
        self.clock = WorkClock(workers)

    def targets(self, ids: np.ndarray) -> np.ndarray:
        """Return the labels of samples, int64 (B,), or float32 (B, K) for multi-label files."""
        labels: np.ndarray = self.betons.labels[ids]
        return labels if labels.ndim == 1 else labels.astype(np.float32)

    @abstractmethod
    def run(self, ids: np.ndarray, slot: int, draw: DrawPlan) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and labels of the samples `ids`, augmented according to the plan that `draw` returns.

        Args:
            slot: which of the stage's buffers to overwrite. No consumer may still read the last batch of the same
                slot.

        Raises:
            SampleError: a sample cannot be decoded.
            UserError: the file cannot be read, or it changed after it was opened.
        """

    @abstractmethod
    def resize(self, size: int, batch: int) -> None:
        """Make images of another size, `batch` at a time. Call it between two passes. No kernel is compiled."""

    def new_workers(self, augment_bytes: int = 0) -> Workers:
        """Allocate the workers, with memory for the largest image.

        The operating system provides only the pages that are written to.

        Raises:
            SampleError: the memory is too small for the largest image, or for the size that the file states.
        """
        count, largest = len(self.decoders), self.betons.largest

        def allocate(num_bytes: int) -> np.ndarray:
            return np.empty((count, num_bytes), np.uint8)

        try:
            return Workers(
                stored=allocate(largest.num_bytes),
                decode=allocate(largest.pixels_and_bytes),
                augment=allocate(augment_bytes),
                decoders=self.decoders,
                spent=self.clock.spent,
            )
        except MemoryError as error:
            heights, widths = self.betons.heights.astype(np.int64), self.betons.widths
            sample = int((heights * widths).argmax())
            reason = f"{heights[sample]} x {widths[sample]} pixels for each of {count} workers do not fit the memory"
            raise SampleError(self.betons, sample, reason) from error

    def check(self, ids: np.ndarray, codes: np.ndarray) -> None:
        """Raise the error for the first image to which `decode_packed` or `decode_and_augment` gave a nonzero code."""
        for b in np.flatnonzero(codes)[:1]:
            sample, code = int(ids[b]), int(codes[b])
            if code == READ_FAILED:
                self.betons.image_bytes(sample)  # raises the reason, unless reading succeeds now
                raise SampleError(self.betons, sample, "could not be read at first")
            self.betons.locate(sample)[0].check_unchanged()
            raise SampleError(self.betons, sample, describe_error(code) if code > 0 else REASONS[-code])

    def pop_timings(self) -> dict[str, float]:
        """Return the seconds spent on each part of the work since the last call, summed over threads."""
        return self.clock.pop()

    def close(self) -> None:
        """Free the decoders. Closing twice is harmless."""
        close_decoders(self.decoders)


class CpuStage(Stage):
    """Decodes and augments each image while it is in cache, and writes it to its place in the batch."""

    def __init__(
        self, betons: BetonSet, policy: AugmentPolicy, output: Output, *, workers: int, slots: int, batch: int
    ) -> None:
        self.policy, self.dtype, self.slots = policy, output.dtype, slots
        self.finish = self._augment(output.size).finish
        super().__init__(betons, output.size, workers)
        self.resize(output.size, batch)

    def _augment(self, size: int) -> CpuAugment:
        return CpuAugment(self.policy, size, str(self.dtype).removeprefix("torch."))

    def resize(self, size: int, batch: int) -> None:
        self.size = size
        augment = self._augment(size)
        self.batches = [augment.new_output(batch) for _ in range(self.slots)]
        largest = self.betons.largest
        self.workers = self.new_workers(augment.new_scratch(1, largest.height, largest.width).nbytes)

    def run(self, ids: np.ndarray, slot: int, draw: DrawPlan) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.batches[slot][: len(ids)]
        self.fill(ids, out, draw)
        images = torch.from_numpy(out).view(self.dtype).permute(0, 3, 1, 2)
        return images, torch.from_numpy(self.targets(ids))

    def fill(self, ids: np.ndarray, out: np.ndarray, draw: DrawPlan) -> None:
        """Write the images for `run` to `out` (B, S, S, 3), in the storage type of the dtype."""
        job = new_job(self.betons, ids)
        plan = draw(ids, job.height, job.width)
        regions = source_regions(plan, self.size)
        decode_and_augment(job, self.workers, regions, plan, self.finish, out.view(np.uint8))
        self.check(ids, job.codes)


# GPU -----------------------------------------------------------------------------------------------------------------


ALIGNMENT = 64  # bytes. The parts of a packed buffer are aligned so that a view of any dtype may begin there
TIMED_BATCHES = 1000  # batches whose times are kept if nothing reads them
HEADROOM = 1.25  # a buffer that must grow takes this much more, so that it soon stops growing


class PackedStage(Stage):
    """Decodes into one pinned buffer per slot, copies the used bytes to the device and augments them there."""

    def __init__(
        self, betons: BetonSet, size: int, device: torch.device, augment: "CudaAugment", workers: int, slots: int
    ) -> None:
        super().__init__(betons, size, workers)
        self.device, self.augment = device, augment
        self.workers = self.new_workers()
        self.buffers = [PinnedBuffer(device) for _ in range(slots)]
        # CUDA events of the latest batches: before the copy, after it, after augmentation
        self.events: deque[list[Any]] = deque(maxlen=TIMED_BATCHES)

    def resize(self, size: int, batch: int) -> None:
        self.size, self.augment = size, self.augment.at(size)  # buffers grow with the batches

    def run(self, ids: np.ndarray, slot: int, draw: DrawPlan) -> tuple[torch.Tensor, torch.Tensor]:
        job = new_job(self.betons, ids)
        plan = draw(ids, job.height, job.width)
        regions = source_regions(plan, self.size)
        offsets = np.append(0, np.cumsum(CHANNELS * regions[:, 2].astype(np.int64) * regions[:, 3]))
        targets = self.targets(ids)
        tables = [plan.view(np.uint8), offsets.view(np.uint8), targets.reshape(-1).view(np.uint8)]
        begins = _aligned([len(table) for table in tables])
        buffer = self.buffers[slot]
        host = buffer.reserve(begins[-1] + int(offsets[-1]))
        for begin, table in zip(begins, tables, strict=False):
            host[begin : begin + len(table)] = table
        decode_packed(job, self.workers, regions, offsets, host[begins[-1] :])
        self.check(ids, job.codes)
        events: list[Any] = []
        self._record_event(events)
        copied = buffer.copy(len(host))
        self._record_event(events)
        plan_bytes, offsets_bytes, label_bytes = (
            copied[begin : begin + len(table)] for begin, table in zip(begins, tables, strict=False)
        )
        images = self.augment(copied[begins[-1] :], offsets_bytes.view(torch.int64), plan_bytes)
        self._record_event(events)
        if events:
            self.events.append(events)
        labels = label_bytes.view(torch.from_numpy(targets).dtype).view(targets.shape)
        return images, labels.clone()  # a view would keep the packed batch

    def _record_event(self, events: list[Any]) -> None:
        """Append a timing event for the current stream, or nothing on a CPU."""
        if self.device.type == "cuda":
            events.append(torch.cuda.Event(enable_timing=True))
            events[-1].record(torch.cuda.current_stream(self.device))

    def pop_timings(self) -> dict[str, float]:
        """Do the same as `Stage.pop_timings`.

        `copy` and `augment` are GPU seconds for the batches that the GPU has finished.
        """
        seconds = super().pop_timings() | {"copy": 0.0}
        while self.events and self.events[0][-1].query():
            begun, copied, augmented = self.events.popleft()
            seconds["copy"] += begun.elapsed_time(copied) / 1e3
            seconds["augment"] += copied.elapsed_time(augmented) / 1e3
        return seconds


def _aligned(lengths: list[int]) -> list[int]:
    """Return aligned offsets for parts with these lengths, and for the part that follows them."""
    padded = [-(-length // ALIGNMENT) * ALIGNMENT for length in lengths]
    return [0, *np.cumsum(padded).tolist()]


class PinnedBuffer:
    """One slot's page-locked bytes. Every batch in the slot fills them on the host and copies them to the device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.on_gpu = device, device.type == "cuda"
        self.memory = torch.empty(0, dtype=torch.uint8)
        # blocking: the host thread sleeps while it waits
        self.copied = torch.cuda.Event(blocking=True) if self.on_gpu else None

    def reserve(self, num_bytes: int) -> np.ndarray:
        """Return `num_bytes` to write to.

        It waits until the last copy from the buffer has ended, which FFCV does not do.
        """
        if self.copied is not None:
            self.copied.synchronize()
        if num_bytes > len(self.memory):
            capacity = int(num_bytes * HEADROOM)
            self.memory = torch.empty(capacity, dtype=torch.uint8, pin_memory=self.on_gpu)
        return self.memory[:num_bytes].numpy()

    def copy(self, num_bytes: int) -> torch.Tensor:
        """Return the first `num_bytes` on the device. The copy is queued on the current stream."""
        copied = self.memory[:num_bytes].to(self.device, non_blocking=True)
        if self.copied is not None:
            self.copied.record(torch.cuda.current_stream(self.device))
        return copied


def new_stage(
    betons: BetonSet, policy: AugmentPolicy, output: Output, *, workers: int, slots: int, batch: int
) -> Stage:
    """Create the stage that turns samples into `output`.

    Raises:
        UserError: a GPU is used without a working numba-cuda, or `check_shrink` fails.
    """
    size, device = output.size, torch.device(output.device)
    if device.type == "cpu":
        return CpuStage(betons, policy, output, workers=workers, slots=slots, batch=batch)
    if not has_numba_cuda():
        extra = f"cuda{(torch.version.cuda or '12').partition('.')[0]}"
        raise UserError(f"augmentation on a GPU needs numba-cuda. Run: {install_extra(extra)}")
    if device.index is None:  # the loader's thread must name it
        device = torch.device("cuda", torch.cuda.current_device())
    check_shrink(betons, device, size)
    try:
        from fastft.augment.cuda import CudaAugment  # numba-cuda, which only machines with a GPU have

        augment = CudaAugment(policy, size, output.dtype, device)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # numba, the compiler and the driver raise many types
        problem = f"augmentation on a GPU needs numba-cuda, which fails here ({first_line(error)})"
        raise UserError(f"{problem}. Run `fastft doctor` to examine it") from error
    return PackedStage(betons, size, device, augment, workers, slots)


def check_shrink(betons: BetonSet, device: torch.device | str, size: int) -> None:
    """Raise UserError if the device cannot make images of this size from the largest image."""
    if torch.device(device).type == "cpu":
        return
    longest = max(betons.largest.height, betons.largest.width)
    if longest > MOST_SHRINK * size:
        raise UserError(
            f"{betons.title}: the GPU cannot shrink a side of {longest} pixels to {size}. Convert with "
            f"--max-resolution {MOST_SHRINK * size} or less"
        )
