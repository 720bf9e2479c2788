"""Batches for training and evaluation out of a `.beton` file, through FFCV's engine."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import numba
import numpy as np
import torch

from beton_tools.errors import UserError
from beton_tools.format import MAX_CLASSES, Beton
from beton_tools.manifest import Manifest
from fastft.augment.draw import draw_plan, eval_plan
from fastft.augment.policies import AugmentPolicy
from fastft.data.engine import Engine
from fastft.data.order import BatchLayout, epoch_order, eval_share
from fastft.data.stage import CpuStage, DrawPlan, PackedStage, Stage

Colour = tuple[float, float, float]
Locate = Callable[[int], tuple[int, int]]  # index of a micro-batch -> (step, first position)


@dataclass(frozen=True)
class Batch:
    """One micro-batch. `images` is a view of a reused buffer: valid until the next batch is asked for."""

    images: torch.Tensor  # (b, 3, S, S) channels-last, normalised, on the loader's device, in its dtype
    labels: torch.Tensor  # (b,) int64 on that device
    ids: np.ndarray  # (b,) int64, dataset indices
    step: int  # optimiser step within the epoch (evaluation: index of the batch)
    first_position: int  # of images[0] in the global batch of that step (evaluation: in the whole set)


@dataclass(frozen=True)
class Output:
    """What images leave the loader, and how many at once."""

    size: int
    batch: int
    device: torch.device
    dtype: torch.dtype


def default_workers() -> int:
    """Cores this process may use, divided among the processes of this node (torchrun's LOCAL_WORLD_SIZE)."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class _BetonLoader:
    """A file, FFCV's engine over it, and one pass over given samples at a time."""

    def __init__(
        self,
        path: str | Path,
        policy: AugmentPolicy,
        output: Output,
        *,
        workers: int | None,
        batches_ahead: int,
    ) -> None:
        for name, value in (("batch", output.batch), ("workers", workers), ("batches_ahead", batches_ahead)):
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: give 1 or more")
        self.beton, self.policy, self.output = Beton.open(path), policy, output
        self.workers = min(workers or default_workers(), numba.config.NUMBA_NUM_THREADS)
        manifest = _manifest(self.beton)
        self.class_names = _class_names(self.beton, manifest)
        # what tells whether two files hold the same samples
        self.content: dict[str, Any] = {"num_samples": self.beton.num_samples}
        if manifest is not None:
            self.content["checksum"] = manifest.checksum
        self.num_classes = len(self.class_names)
        self.closed = False
        self.wait_seconds = 0.0  # that the consumer waited for batches; set it to 0 to count anew
        slots = batches_ahead + 2  # FFCV's count: the queue, one with the consumer, one in work
        self.stage = _stage(self.beton, policy, output, self.workers, slots)
        self.engine = Engine(
            self.beton,
            self.stage,
            batch_size=output.batch,
            workers=self.workers,
            batches_ahead=batches_ahead,
        )

    def _batches(self, order: np.ndarray, draw: DrawPlan, locate: Locate) -> Iterator[Batch]:
        if self.closed:
            raise RuntimeError("this loader is closed")
        if len(order) == 0:
            return
        thread = self.engine.start(order, draw)
        try:
            for index in range(-(-len(order) // self.output.batch)):
                began = perf_counter()
                images, labels = next(thread)
                self.wait_seconds += perf_counter() - began
                ids = order[index * self.output.batch :][: self.output.batch]
                yield Batch(images, labels, ids, *locate(index))
        finally:
            thread.close()

    def take_work(self) -> dict[str, float]:
        """Seconds that the loader has worked since the last call, beside the consumer: of its threads `read` (wall), `decode`
        and `augment` (on a core); of the GPU, where it is the device, `copy` and `augment`."""
        return self.stage.take_work()

    def close(self) -> None:
        """End the running pass and its thread, and free the decoders."""
        self.closed = True
        self.engine.close()
        self.stage.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TrainLoader(_BetonLoader):
    """Ordered, augmented micro-batches of this rank; the same images at any world size and worker count.

    `batch_size` is global; world_size * micro_batch must divide it. `subset` restricts training to these
    dataset indices. A decode error raises `SampleError` in the loop that iterates.
    """

    def __init__(
        self,
        path: str | Path,
        policy: AugmentPolicy,
        *,
        size: int,
        seed: int,
        batch_size: int,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
        mean: Colour,
        std: Colour,
        device: torch.device | str,
        dtype: torch.dtype,
        workers: int | None = None,
        batches_ahead: int = 2,
        subset: np.ndarray | None = None,
    ) -> None:
        policy = replace(policy, mean=mean, std=std)
        output = Output(size, micro_batch, torch.device(device), dtype)
        super().__init__(path, policy, output, workers=workers, batches_ahead=batches_ahead)
        self.seed = seed
        self.subset = _checked_indices(self.beton, subset)
        self.num_samples = len(self.subset)
        self.layout = BatchLayout(self.num_samples, batch_size, micro_batch, rank, world_size)
        self.steps_per_epoch = self.layout.steps

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The micro-batches of steps start_step, start_step + 1, ... in order.

        Iterating ends an earlier pass of this loader. Raises UserError if `start_step` is not in the epoch.
        """
        order = self.subset[epoch_order(self.num_samples, self.seed, epoch)]
        size, policy = self.output.size, self.policy

        def draw(ids: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
            return draw_plan(
                policy, seed=self.seed, epoch=epoch, sample_ids=ids, heights=heights, widths=widths, size=size
            )

        locate = partial(self.layout.locate, start_step=start_step)
        return self._batches(self.layout.rank_order(order, start_step), draw, locate)


class EvalLoader(_BetonLoader):
    """Every sample exactly once at any world size: rank r gets a contiguous share, nothing is padded.

    Short side to size / crop_pct, central crop. `num_samples` counts the whole set, not this rank's share.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        size: int,
        crop_pct: float = 1.0,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        mean: Colour,
        std: Colour,
        device: torch.device | str,
        dtype: torch.dtype,
        workers: int | None = None,
        batches_ahead: int = 2,
        indices: np.ndarray | None = None,
    ) -> None:
        policy = AugmentPolicy("none", mean=mean, std=std)
        output = Output(size, batch_size, torch.device(device), dtype)
        super().__init__(path, policy, output, workers=workers, batches_ahead=batches_ahead)
        indices = _checked_indices(self.beton, indices)
        self.num_samples, self.crop_pct = len(indices), crop_pct
        self.share, self.first = eval_share(indices, rank, world_size)

    def __iter__(self) -> Iterator[Batch]:
        def draw(ids: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
            return eval_plan(ids, heights, widths, self.output.size, self.crop_pct)

        return self._batches(self.share, draw, lambda index: (index, self.first + index * self.output.batch))


def _stage(beton: Beton, policy: AugmentPolicy, output: Output, workers: int, slots: int) -> Stage:
    size, device, dtype = output.size, output.device, output.dtype
    if device.type == "cpu":
        return CpuStage(beton, policy, size, workers, slots=slots, batch=output.batch, dtype=dtype)
    if find_spec("numba_cuda") is None:
        raise UserError("augmentation on a GPU needs numba-cuda: pip install -e '.[cuda12]'")
    from fastft.augment.cuda import CudaAugment
    from fastft.augment.cuda_resize import MOST_SHRINK

    longest = max(int(beton.heights.max()), int(beton.widths.max()))
    if longest > MOST_SHRINK * size:
        raise UserError(
            f"{beton.path}: the GPU cannot shrink a side of {longest} pixels to {size}; convert with "
            f"--max-resolution {MOST_SHRINK * size} or less"
        )
    augment = CudaAugment(policy, size, dtype, device)
    return PackedStage(beton, size, workers, slots=slots, device=device, augment=augment)


def _manifest(beton: Beton) -> Manifest | None:
    manifest = Manifest.of_beton(beton.path)
    if manifest and (manifest.num_samples, manifest.file_size) != (beton.num_samples, beton.data.size):
        raise UserError(
            f"{beton.path}: its manifest is of another file ({manifest.num_samples} samples, {manifest.file_size} bytes); "
            "write the file again, or delete the manifest"
        )
    return manifest


def _class_names(beton: Beton, manifest: Manifest | None) -> list[str]:
    """By label: from the manifest beside the file, else "class 0" to the highest label."""
    highest, lowest = int(beton.labels.max()), int(beton.labels.min())
    count = manifest.num_classes if manifest else highest + 1
    if lowest < 0 or highest >= min(count, MAX_CLASSES):
        raise UserError(f"{beton.path}: labels from {lowest} to {highest} are no numbers of {count} classes")
    return [manifest.class_label(k) if manifest else f"class {k}" for k in range(count)]


def _checked_indices(beton: Beton, indices: np.ndarray | None) -> np.ndarray:
    if indices is None:
        return np.arange(beton.num_samples, dtype=np.int64)
    indices = np.asarray(indices, np.int64)
    if len(indices) and not 0 <= indices.min() <= indices.max() < beton.num_samples:
        raise UserError(f"{beton.path}: indices must be from 0 to {beton.num_samples - 1}")
    return indices
