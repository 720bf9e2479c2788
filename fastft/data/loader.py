"""Loaders of training and evaluation batches from a `.beton` file.

with TrainLoader("train.beton", "3aug", 224, batch_size=256) as loader:
    for epoch in range(50):
        for batch in loader:
            model(batch.images), batch.labels
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numba
import numpy as np
import torch

from beton_tools.cgroup import usable_cpus
from beton_tools.errors import UserError
from beton_tools.format import Beton
from beton_tools.manifest import Manifest
from fastft.augment.draw import draw_plan, eval_plan
from fastft.augment.policies import AugmentPolicy, parse_policy
from fastft.data.classes import read_class_names
from fastft.data.engine import Engine
from fastft.data.order import BatchLayout, Shard, epoch_order, eval_share
from fastft.data.packed_stage import PackedStage
from fastft.data.stage import CpuStage, DrawPlan, Stage

Locate = Callable[[int], tuple[int, int]]  # index of a micro-batch -> (step, position of its first image)


@dataclass(frozen=True)
class Output:
    """The images that a loader delivers: (b, 3, size, size), normalised, in channels-last memory.

    On a GPU (`device="cuda"`) augmentation runs there too.
    """

    size: int
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32  # float32, float16 or bfloat16


@dataclass(frozen=True)
class Batch:
    """One micro-batch. `images` is a view of a reused buffer, valid until the next batch is requested."""

    images: torch.Tensor  # (b, 3, S, S), as `Output` says
    labels: torch.Tensor  # (b,) int64 on the same device
    ids: np.ndarray  # (b,) int64, indices of the samples in the file
    step: int  # optimiser step within the epoch (evaluation: index of the batch)
    first_position: int  # of images[0] in the global batch of that step (evaluation: in the whole set)


class _BetonLoader:
    """A file, the stage that turns its samples into batches, and one pass over given samples at a time."""

    def __init__(
        self,
        path: str | Path,
        policy: AugmentPolicy | str,
        output: Output | int,
        *,
        batch: int,
        workers: int | None,
        batches_ahead: int,
        on_wait: Callable[[], None],
    ) -> None:
        for name, value in (("batch", batch), ("workers", workers), ("batches_ahead", batches_ahead)):
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: give 1 or more")
        self.policy = parse_policy(policy) if isinstance(policy, str) else policy
        self.output = Output(output) if isinstance(output, int) else output
        self.beton, self.batch = Beton.open(path), batch
        self.workers = min(workers or default_workers(), numba.config.NUMBA_NUM_THREADS)
        manifest = _read_manifest(self.beton)
        self.class_names = read_class_names(self.beton, manifest)
        # identifies the samples of the file, to compare files between processes and runs
        self.content: dict[str, Any] = {"num_samples": self.beton.num_samples}
        if manifest is not None:
            self.content["checksum"] = manifest.checksum
        self.num_classes = len(self.class_names)
        self.class_counts: list[int] = np.bincount(self.beton.labels, minlength=self.num_classes).tolist()
        self.closed = False
        self.wait_seconds = 0.0  # that the consumer waited for batches; may be reset to 0
        self.batches_ahead, self.on_wait = batches_ahead, on_wait

    def _allocate(self) -> None:
        """Allocate decoders and buffers; the last thing that a constructor does, when nothing can be refused any more."""
        slots = Engine.slots(self.batches_ahead)
        self.stage = _new_stage(
            self.beton, self.policy, self.output, workers=self.workers, slots=slots, batch=self.batch
        )
        self.engine = Engine(
            self.stage,
            batch_size=self.batch,
            workers=self.workers,
            batches_ahead=self.batches_ahead,
            on_wait=self.on_wait,
        )

    def _batches(self, order: np.ndarray, draw: DrawPlan, locate: Locate) -> Iterator[Batch]:
        if self.closed:
            raise RuntimeError("this loader is closed")
        if len(order) == 0:
            return
        self.beton.check_unchanged()
        thread = self.engine.start(order, draw)
        try:
            for index in range(-(-len(order) // self.batch)):
                began = perf_counter()
                images, labels = next(thread)
                self.wait_seconds += perf_counter() - began
                ids = order[index * self.batch :][: self.batch]
                yield Batch(images, labels, ids, *locate(index))
        finally:
            thread.close()

    def pop_timings(self) -> dict[str, float]:
        """Seconds of the loader's work since the last call, in parallel with the consumer's.

        Summed over its threads: `read` (wall time), `decode` and `augment` (CPU time). With a GPU, `copy` and `augment` are
        seconds of the GPU.
        """
        return self.stage.pop_timings()

    def close(self) -> None:
        """End the pass in progress and its thread, and free the decoders."""
        self.closed = True
        self.engine.close()
        self.stage.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TrainLoader(_BetonLoader):
    """Micro-batches of augmented images in a seeded order; the same images at any world size and number of workers.

    Each iteration is one epoch: the first of epoch 0, the next of epoch 1. `state_dict` holds the position, also in the
    middle of an epoch; a loader that loads it continues with the next micro-batch. A sample that cannot be decoded raises
    `SampleError` in the loop that iterates.

    Args:
        path: a `.beton` file, written by `fastft convert` or by FFCV.
        policy: augmentation, also as a string such as "rand-m9-mstd0.5-inc1", "3aug" or "none" (see `parse_policy`).
        output: size, device and dtype of the images; a number is the size in pixels, for float32 on the CPU.
        batch_size: images of one optimiser step, over all processes.
        micro_batch: images per delivered batch (default: this process's share of `batch_size`); `batch_size` must be
            divisible by world_size * micro_batch.
        seed: of the order and of all random choices.
        shard: rank and world size of this process.
        subset: int64 (n,), indices of the samples to train on (default: all).
        workers: threads (default: as many as CPUs, divided among the processes of this machine).
        batches_ahead: batches that are prepared in advance, the one in progress included.
        on_wait: called about ten times a second while a batch is waited for; what it raises ends the pass.

    Raises:
        UserError: the file is not a complete `.beton`, or an argument does not fit it.
    """

    def __init__(
        self,
        path: str | Path,
        policy: AugmentPolicy | str,
        output: Output | int,
        *,
        batch_size: int,
        micro_batch: int | None = None,
        seed: int = 0,
        shard: Shard = Shard(),  # noqa: B008 - frozen
        subset: np.ndarray | None = None,
        workers: int | None = None,
        batches_ahead: int = 2,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        if micro_batch is None:
            micro_batch = max(1, batch_size // shard.world_size)
        super().__init__(
            path,
            policy,
            output,
            batch=micro_batch,
            workers=workers,
            batches_ahead=batches_ahead,
            on_wait=on_wait,
        )
        self.seed = seed
        self.subset = _checked_indices(self.beton, subset)
        self.num_samples = len(self.subset)
        self.layout = BatchLayout(self.num_samples, batch_size, micro_batch, shard)
        self.steps_per_epoch = self.layout.steps
        self._next = self._position = (0, 0)  # epoch, micro-batches delivered
        self._allocate()

    def resize(self, size: int, micro_batch: int) -> None:
        """Deliver images of this size, `micro_batch` per batch, from the next pass on; a change ends the pass in progress.

        Raises:
            UserError: as the constructor.
        """
        if (size, micro_batch) == (self.output.size, self.batch):
            return
        layout = replace(self.layout, micro_batch=micro_batch)
        check_shrink(self.beton, self.output.device, size)
        self.engine.close()
        self.stage.resize(size, micro_batch)
        self.engine.batch_size = self.batch = micro_batch
        self.layout, self.output = layout, replace(self.output, size=size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The micro-batches of steps start_step, start_step + 1, ... of an epoch in order.

        Iterating ends an earlier pass of this loader.

        Raises:
            UserError: `start_step` is not in the epoch.
        """
        order = self._epoch_order(epoch)

        def draw(ids: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
            size, policy = self.output.size, self.policy
            return draw_plan(
                policy, seed=self.seed, epoch=epoch, sample_ids=ids, heights=heights, widths=widths, size=size
            )

        locate = partial(self.layout.locate, start_step=start_step)
        return self._batches(self.layout.rank_order(order, start_step), draw, locate)

    @property
    def _per_step(self) -> int:
        """Micro-batches of this process in a step."""
        return self.layout.rank_batch // self.batch

    def samples_of_step(self, epoch: int, step: int) -> np.ndarray:
        """Indices of the samples in the global batch of a step, int64 (batch_size,)."""
        batch = self.layout.batch_size
        return self._epoch_order(epoch)[step * batch : (step + 1) * batch]

    def _epoch_order(self, epoch: int) -> np.ndarray:
        return self.subset[epoch_order(self.num_samples, self.seed, epoch)]

    def __len__(self) -> int:
        """Micro-batches of this process in an epoch."""
        return self.steps_per_epoch * self._per_step

    def __iter__(self) -> Iterator[Batch]:
        """The micro-batches of the next epoch, or of the rest of an epoch after `load_state_dict`."""
        epoch, done = self._next
        self._next, self._position = (epoch + 1, 0), (epoch, done)
        for batch in islice(self.epoch(epoch, done // self._per_step), done % self._per_step, None):
            done += 1
            self._position = (epoch, done) if done < len(self) else (epoch + 1, 0)
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is this epoch, from its start."""
        self._next = self._position = (epoch, 0)

    def state_dict(self) -> dict[str, int]:
        """The position behind the micro-batch that was delivered last, for `load_state_dict`."""
        epoch, done = self._position
        step, inner = divmod(done, self._per_step)
        return {"epoch": epoch, "step": step, "micro_batch_of_step": inner} | self._state_of_layout()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where the loader was that returned `state`, also one of another world size.

        Raises:
            UserError: the state is of another file, seed or batch size, or lies within a step that is divided differently.
        """
        own = self._state_of_layout()
        layout = () if state["micro_batch_of_step"] == 0 else ("world_size", "micro_batch")
        for name in ("seed", "num_samples", "batch_size", *layout):
            if state[name] != own[name]:
                raise UserError(
                    f"the loader's state was saved with {name} {state[name]}, this loader has {own[name]}"
                )
        done = state["step"] * self._per_step + state["micro_batch_of_step"]
        self._next = self._position = (state["epoch"], done)

    def _state_of_layout(self) -> dict[str, int]:
        return {
            "seed": self.seed,
            "num_samples": self.num_samples,
            "batch_size": self.layout.batch_size,
            "world_size": self.layout.shard.world_size,
            "micro_batch": self.batch,
        }


class EvalLoader(_BetonLoader):
    """Batches for evaluation: every sample exactly once at any world size, in the order of the file.

    Each rank reads a contiguous part of the samples; no sample is repeated to fill a batch. The short side is resized to
    size / crop_pct, then the central size x size is cropped. Only the mean and std of `policy` are used. `num_samples`
    counts the samples of all ranks. indices: the samples to evaluate (default: all). The other arguments and the errors
    are those of `TrainLoader`.
    """

    def __init__(
        self,
        path: str | Path,
        policy: AugmentPolicy | str,
        output: Output | int,
        *,
        batch_size: int,
        crop_pct: float = 1.0,
        shard: Shard = Shard(),  # noqa: B008 - frozen
        indices: np.ndarray | None = None,
        workers: int | None = None,
        batches_ahead: int = 2,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        colours = parse_policy(policy) if isinstance(policy, str) else policy
        policy = AugmentPolicy("none", mean=colours.mean, std=colours.std)
        super().__init__(
            path,
            policy,
            output,
            batch=batch_size,
            workers=workers,
            batches_ahead=batches_ahead,
            on_wait=on_wait,
        )
        indices = _checked_indices(self.beton, indices)
        self.num_samples, self.crop_pct = len(indices), crop_pct
        self.share, self.first = eval_share(indices, shard)
        self._allocate()

    def __len__(self) -> int:
        """Batches of this process."""
        return -(-len(self.share) // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        def draw(ids: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
            return eval_plan(ids, heights, widths, self.output.size, self.crop_pct)

        return self._batches(self.share, draw, lambda index: (index, self.first + index * self.batch))


def default_workers() -> int:
    """CPUs that this process may use, divided among the processes of this machine (torchrun's LOCAL_WORLD_SIZE)."""
    return max(1, usable_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _new_stage(
    beton: Beton, policy: AugmentPolicy, output: Output, *, workers: int, slots: int, batch: int
) -> Stage:
    size, device = output.size, torch.device(output.device)
    if device.type == "cpu":
        return CpuStage(beton, policy, size, output.dtype, workers=workers, slots=slots, batch=batch)
    if find_spec("numba_cuda") is None:
        raise UserError("augmentation on a GPU needs numba-cuda: pip install -e '.[cuda12]'")
    from fastft.augment.cuda import CudaAugment

    check_shrink(beton, device, size)
    augment = CudaAugment(policy, size, output.dtype, device)
    return PackedStage(beton, size, device, augment, workers=workers, slots=slots)


def check_shrink(beton: Beton, device: torch.device | str, size: int) -> None:
    """Raise UserError if the device cannot make images of this size from the largest of the file."""
    if torch.device(device).type == "cpu":
        return
    from fastft.augment.cuda_resize import MOST_SHRINK

    longest = max(int(beton.heights.max()), int(beton.widths.max()))
    if longest > MOST_SHRINK * size:
        raise UserError(
            f"{beton.path}: the GPU cannot shrink a side of {longest} pixels to {size}; convert with "
            f"--max-resolution {MOST_SHRINK * size} or less"
        )


def _read_manifest(beton: Beton) -> Manifest | None:
    """The manifest beside the file, if there is one.

    Raises:
        UserError: it describes another file.
    """
    manifest = Manifest.of_beton(beton.path)
    if manifest and (manifest.num_samples, manifest.file_size) != (beton.num_samples, beton.file_size):
        raise UserError(
            f"{beton.path}: its manifest is of another file ({manifest.num_samples} samples, {manifest.file_size} bytes); "
            "write the file again, or delete the manifest"
        )
    return manifest


def _checked_indices(beton: Beton, indices: np.ndarray | None) -> np.ndarray:
    if indices is None:
        return np.arange(beton.num_samples, dtype=np.int64)
    indices = np.asarray(indices, np.int64)
    if len(indices) and not 0 <= indices.min() <= indices.max() < beton.num_samples:
        raise UserError(f"{beton.path}: indices must be from 0 to {beton.num_samples - 1}")
    return indices
