"""Loaders of training and evaluation batches from one or more `.beton` files.

with TrainLoader("train.beton", "3aug", 224, batch_size=256) as loader:
    for epoch in range(50):
        for batch in loader:
            model(batch.images), batch.labels
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np
import torch

from beton_tools.base import torchrun
from beton_tools.base.cgroup import usable_cpus
from beton_tools.base.errors import UserError
from beton_tools.read.beton_paths import BetonPaths
from beton_tools.read.beton_set import BetonSet
from fastft.augment.draw import draw_plan, eval_plan
from fastft.augment.policies import AugmentPolicy
from fastft.data.engine import Engine
from fastft.data.order import BatchLayout, SampleOrder, Shard, data_notes, eval_share
from fastft.data.slots import count_slots
from fastft.data.stage import DrawPlan, Output, check_shrink, new_stage
from fastft.recipe.constants import BLOCK_MIB, NONE, RANDOM

# silent unless the program configures logging; `fastft train` prints the notes itself
_log = logging.getLogger("fastft.data")
_log.addHandler(logging.NullHandler())
Locate = Callable[[int], tuple[int, int]]  # index of a micro-batch -> (step, position of its first image)


@dataclass(frozen=True)
class Batch:
    """One micro-batch. `images` is a view of a reused buffer, valid until the next batch is requested."""

    images: torch.Tensor  # (b, 3, S, S), as `Output` says
    labels: torch.Tensor  # (b,) int64 on the same device, or multi-label (b, K) float32
    ids: np.ndarray  # (b,) int64, indices of the samples: in the file, or through all files
    step: int  # optimiser step within the epoch (evaluation: index of the batch)
    first_position: int  # of images[0] in the global batch of that step (evaluation: in the whole set)


class _BetonLoader:
    """Files, the stage that turns their samples into batches, and one pass over given samples at a time."""

    def __init__(
        self,
        data: BetonPaths | BetonSet,
        policy: AugmentPolicy | str,
        output: Output | int,
        *,
        batch: int,
        workers: int | None,
        batches_ahead: int,
    ) -> None:
        self.output = output if isinstance(output, Output) else Output(output)
        size = self.output.size
        least_one = {"size": size, "batch": batch, "workers": workers, "batches_ahead": batches_ahead}
        for name, value in least_one.items():
            if value is not None and (not isinstance(value, int | np.integer) or value < 1):
                raise UserError(f"{name} is {value}: give a whole number, 1 or more")
        _check_device(self.output.device)
        self.policy = AugmentPolicy(policy) if isinstance(policy, str) else policy
        self.betons, self.batch = data if isinstance(data, BetonSet) else BetonSet.open(data), batch
        self.workers = min(workers or default_workers(), os.cpu_count() or 1)
        self.class_names = self.betons.class_names
        self.content = self.betons.content
        self.num_classes = len(self.class_names)
        self.class_counts = self.betons.class_counts
        self.closed = False
        self.wait_seconds = 0.0  # that the consumer waited for batches; may be reset to 0
        self.batches_ahead = batches_ahead

    def _allocate(self) -> None:
        """Allocate decoders and buffers; the last thing that a constructor does, when nothing can be refused any more."""
        slots = count_slots(self.batches_ahead)
        self.stage = new_stage(
            self.betons, self.policy, self.output, workers=self.workers, slots=slots, batch=self.batch
        )
        self.engine = Engine(self.stage, batch_size=self.batch, batches_ahead=self.batches_ahead)

    def _batches(self, order: np.ndarray, draw: DrawPlan, locate: Locate) -> Iterator[Batch]:
        if self.closed:
            raise RuntimeError("this loader is closed")
        if len(order) == 0:
            return
        self.betons.check_unchanged()
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

    def _describe(self, samples: int, batches: int, more: str = "") -> str:
        """What a loader delivers, in a line for notebooks."""
        images, classes = f"{samples:,} images", f"{self.num_classes:,} classes"
        state = "closed" if self.closed else f"{batches:,} batches of {self.batch}"
        size, device = self.output.size, torch.device(self.output.device)
        return (
            f"<{type(self).__name__} {self.betons.title}: {images}, {classes}; {state} at {size} px on {device}{more}>"
        )

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
        data: a `.beton` file, written by `fastft convert` or by FFCV; a pattern such as "train-*.beton", or several files
            (see `find_betons`), whose samples are numbered through; or files that are already open.
        policy: augmentation, also as a string such as "rand-m9-mstd0.5-inc1", "3aug" or "none" (see `AugmentPolicy`).
        output: size, device and dtype of the images; a number is the size in pixels, for float32 on the CPU.
        batch_size: images of one optimiser step, over all processes.
        micro_batch: images per delivered batch (default: this process's share of `batch_size`); `batch_size` must be
            divisible by world_size * micro_batch.
        seed: of the order and of all random choices.
        shard: rank and world size of this process.
        order: "random", or "blocks" for files that do not fit the memory; see `fastft.data.order`.
        block_mib: size of a block, in MiB. Three of them must fit the memory.
        sampling: "balanced" or "sqrt": draw rare classes more often; see `data.sampling`.
        subset: int64 (n,), indices of the samples to train on (default: all).
        workers: threads (default: as many as CPUs, divided among the processes of this machine).
        batches_ahead: batches that are prepared in advance, the one in progress included; at least 2. Raise it if the time
            between two requests varies much.

    Raises:
        UserError: a file is not a complete `.beton`, the files contradict each other, or an argument does not fit them.
    """

    def __init__(
        self,
        data: BetonPaths | BetonSet,
        policy: AugmentPolicy | str,
        output: Output | int,
        *,
        batch_size: int,
        micro_batch: int | None = None,
        seed: int = 0,
        shard: Shard = Shard(),  # noqa: B008 - frozen
        order: str = RANDOM,
        block_mib: int = BLOCK_MIB,
        sampling: str = NONE,
        subset: np.ndarray | None = None,
        workers: int | None = None,
        batches_ahead: int = 2,
    ) -> None:
        if micro_batch is None:
            micro_batch = max(1, batch_size // shard.world_size)
        super().__init__(data, policy, output, batch=micro_batch, workers=workers, batches_ahead=batches_ahead)
        self.seed = seed
        if subset is not None:
            subset = _checked_indices(self.betons, subset)
        self.order = SampleOrder(self.betons, subset, seed, order, block_mib, sampling)
        self.num_samples = len(self.order)
        self.layout = BatchLayout(self.num_samples, batch_size, micro_batch, shard)
        self.steps_per_epoch = self.layout.steps
        self._next = self._position = (0, 0)  # epoch, micro-batches delivered
        self.notes = data_notes(self.betons, order, block_mib)
        self._allocate()
        for note in self.notes if shard.rank == 0 else ():
            _log.warning(note)

    def __repr__(self) -> str:
        return self._describe(
            self.num_samples, len(self), f"; augmentation {self.policy.augment}; next epoch {self._next[0]}"
        )

    def resize(self, size: int, micro_batch: int) -> None:
        """Deliver images of this size, `micro_batch` per batch, from the next pass on; a change ends the pass in progress.

        Raises:
            UserError: as the constructor.
        """
        if (size, micro_batch) == (self.output.size, self.batch):
            return
        layout = replace(self.layout, micro_batch=micro_batch)
        check_shrink(self.betons, self.output.device, size)
        self.engine.close()
        self.stage.resize(size, micro_batch)
        self.engine.batch_size = self.batch = micro_batch
        self.layout, self.output = layout, replace(self.output, size=size)

    def set_policy(self, policy: AugmentPolicy) -> None:
        """Augment by another policy from the next pass on; of the same normalisation, and not AugMix, which needs buffers."""
        self.policy = policy

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The micro-batches of steps start_step, start_step + 1, ... of an epoch in order.

        Iterating ends an earlier pass of this loader.

        Raises:
            UserError: `start_step` is not in the epoch.
        """
        order = self.layout.rank_order(self.order.of_epoch(epoch), start_step)
        return self._read_epoch(epoch, order, partial(self.layout.locate, start_step=start_step))

    def _read_epoch(self, epoch: int, order: np.ndarray, locate: Locate) -> Iterator[Batch]:
        read_ahead, begun, policy = self.order.read_ahead(epoch, order), 0, self.policy

        def draw(ids: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
            nonlocal begun
            keys, begun = order[begun : begun + len(ids)], begun + len(ids)
            if read_ahead is not None:
                read_ahead.advance(len(ids))
            return draw_plan(
                policy, seed=self.seed, epoch=epoch, sample_ids=keys, heights=heights, widths=widths,
                size=self.output.size,
            )  # fmt: skip

        with nullcontext() if read_ahead is None else closing(read_ahead):
            yield from self._batches(order % len(self.betons), draw, locate)

    @property
    def _per_step(self) -> int:  # micro-batches of this process
        return self.layout.rank_batch // self.batch

    def samples_of_step(self, epoch: int, step: int) -> np.ndarray:
        """Indices of the samples in the global batch of a step, int64 (batch_size,)."""
        batch = self.layout.batch_size
        return self.order.of_epoch(epoch)[step * batch : (step + 1) * batch] % len(self.betons)

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

    def state_dict(self) -> dict[str, Any]:
        """The position behind the micro-batch that was delivered last, for `load_state_dict`."""
        epoch, done = self._position
        step, inner = divmod(done, self._per_step)
        return {
            "epoch": epoch, "step": step, "micro_batch_of_step": inner, "seed": self.seed, "num_samples": self.num_samples,
            "batch_size": self.layout.batch_size, "order": self.order.name,
            "world_size": self.layout.shard.world_size, "micro_batch": self.batch,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the loader was that returned `state`, also one of another world size.

        Raises:
            UserError: the state is of another file, seed or batch size, or lies within a step that is divided differently.
        """
        own, state = self.state_dict(), {"order": RANDOM} | state  # earlier versions had no other order
        if missing := own.keys() - state.keys():
            raise UserError(f"not the state of a loader: it has no {min(missing)}; give what state_dict() returned")
        layout = () if state["micro_batch_of_step"] == 0 else ("world_size", "micro_batch")
        for name in ("seed", "num_samples", "batch_size", "order", *layout):
            if state[name] != own[name]:
                raise UserError(f"the loader's state was saved with {name} {state[name]}, this loader has {own[name]}")
        done = state["step"] * self._per_step + state["micro_batch_of_step"]
        self._next = self._position = (state["epoch"], done)


class EvalLoader(_BetonLoader):
    """Batches for evaluation: every sample exactly once at any world size, in the order of the file.

    Each rank reads a contiguous part of the samples; no sample is repeated to fill a batch. The short side is resized to
    size / crop_pct, then the central size x size is cropped. Only crop_pct, mean and std of `policy` are used. `num_samples`
    counts the samples of all ranks. indices: the samples to evaluate (default: all). The other arguments and the errors
    are those of `TrainLoader`.
    """

    def __init__(
        self,
        data: BetonPaths | BetonSet,
        policy: AugmentPolicy | str,
        output: Output | int,
        *,
        batch_size: int,
        shard: Shard = Shard(),  # noqa: B008 - frozen
        indices: np.ndarray | None = None,
        workers: int | None = None,
        batches_ahead: int = 2,
    ) -> None:
        policy = AugmentPolicy(policy) if isinstance(policy, str) else policy
        super().__init__(
            data, replace(policy, augment="none"), output, batch=batch_size, workers=workers,
            batches_ahead=batches_ahead,
        )  # fmt: skip
        if indices is None:
            indices = np.arange(self.betons.num_samples, dtype=np.int64)
        indices = _checked_indices(self.betons, indices)
        self.num_samples = len(indices)
        self.share, self.first = eval_share(indices, shard)
        self._allocate()

    def __repr__(self) -> str:
        return self._describe(self.num_samples, len(self))

    def __len__(self) -> int:
        """Batches of this process."""
        return -(-len(self.share) // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        def draw(ids: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
            return eval_plan(ids, heights, widths, self.output.size, self.policy.crop_pct)

        return self._batches(self.share, draw, lambda index: (index, self.first + index * self.batch))


class AsTuples:
    """A loader whose batches are tuples of the images and labels of a `Batch`.

    copy: return tensors that stay valid after the next batch is requested. Without it the images are a view of a buffer
    that the loader reuses, which suits a loop that is done with a batch before it requests the next.
    """

    def __init__(self, loader: TrainLoader | EvalLoader, *, copy: bool = False) -> None:
        self.loader, self.copy = loader, copy

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in ((batch.images, batch.labels) for batch in self.loader):
            yield (images.clone(), labels.clone()) if self.copy else (images, labels)


def _check_device(device: torch.device | str) -> None:
    """Raise UserError if it is not the CPU or a GPU that torch finds."""
    try:
        known = torch.device(device)
        if known.type not in ("cpu", "cuda"):
            raise TypeError
    except (RuntimeError, TypeError):
        raise UserError(f"device is {device}: give cpu or cuda") from None
    if known.type == "cuda" and (known.index or 0) >= (gpus := torch.cuda.device_count()):
        raise UserError(f"device is {device}, but torch finds {gpus or 'no'} GPUs; run 'nvidia-smi', or give another")


def default_workers() -> int:
    """CPUs that this process may use, divided among the processes of this machine (torchrun's LOCAL_WORLD_SIZE).

    Those of the launcher are divided: with `torchrun --numa-binding` a process has the CPUs of its GPU's node alone.
    """
    processes = torchrun.local_world_size()
    return usable_cpus() if processes == 1 else max(1, min(usable_cpus(), usable_cpus(os.getppid()) // processes))


def _checked_indices(betons: BetonSet, indices: np.ndarray) -> np.ndarray:
    indices = np.asarray(indices)
    if indices.ndim != 1 or not (np.issubdtype(indices.dtype, np.integer) or len(indices) == 0):
        raise UserError(f"{betons.title}: indices must be sample numbers; of a mask give np.flatnonzero(mask)")
    indices = indices.astype(np.int64)
    if len(indices) and not 0 <= indices.min() <= indices.max() < betons.num_samples:
        raise UserError(f"{betons.title}: indices must be from 0 to {betons.num_samples - 1}")
    return indices
