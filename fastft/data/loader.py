"""Load training and evaluation batches from one or more `.beton` files.

with TrainLoader("train.beton", "3aug", 224, batch_size=256) as loader:
    for epoch in range(50):
        for batch in loader:
            model(batch.images), batch.labels
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from time import perf_counter
from typing import Any

import numpy as np
import torch

from beton_tools.base import torchrun
from beton_tools.base.cgroup import usable_cpus
from beton_tools.base.console import counted
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

# silent unless the program configures logging. `fastft train` prints the notes itself
_log = logging.getLogger("fastft.data")
_log.addHandler(logging.NullHandler())
Locate = Callable[[int], tuple[int, int]]  # maps a micro-batch index to (step, its first image's position)


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    On the CPU, `images` is a view of a reused buffer and is valid until you request the next batch. On a GPU you may keep it.
    """

    images: torch.Tensor  # (b, 3, S, S), with the device and dtype of `Output`
    labels: torch.Tensor  # (b,) int64 on the same device, or (b, K) float32 for multi-label files
    ids: np.ndarray  # (b,) int64, sample indices: in the file, or numbered through all files
    step: int  # optimiser step within the epoch (evaluation: batch index)
    first_position: int  # position of images[0] in the step's global batch (evaluation: in the whole set)


class _BetonLoader:
    """Holds the files, and the stage that turns samples into batches. Runs one pass over given samples at a time."""

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
                raise UserError(f"{name} is {value}. Give a whole number, 1 or more")
        _check_device(self.output.device)
        self.policy = AugmentPolicy(policy) if isinstance(policy, str) else policy
        self.betons, self.batch = data if isinstance(data, BetonSet) else BetonSet.open(data), batch
        self.workers = min(workers or default_workers(), os.cpu_count() or 1)
        self.known_classes = self.betons.known_classes
        self.class_names = list(self.known_classes.labels)
        self.content = self.betons.content
        self.num_classes = len(self.class_names)
        self.class_counts = self.betons.class_counts
        self.closed = False
        self.wait_seconds = 0.0  # how long the consumer has waited for batches. You may reset it to 0
        self.batches_ahead = batches_ahead

    def _allocate(self) -> None:
        """Allocate decoders and buffers. Constructors call this last, when no argument can be refused any more."""
        slots = count_slots(self.batches_ahead)
        self.stage = new_stage(
            self.betons, self.policy, self.output, workers=self.workers, slots=slots, batch=self.batch
        )
        self.engine = Engine(self.stage, batches_ahead=self.batches_ahead)

    def _check_open(self) -> None:
        """Raise RuntimeError if the loader is closed, or UserError if a file has changed."""
        if self.closed:
            raise RuntimeError("this loader is closed")
        self.betons.check_unchanged()

    def _batches(self, batches: Iterable[np.ndarray], draw: DrawPlan, locate: Locate) -> Iterator[Batch]:
        """Load `batches`, which are sample ids, int64 (b,). Repeated ids are numbered as in `SampleOrder.of_epoch`."""
        self._check_open()
        begun: deque[np.ndarray] = deque()  # ids of the batches that the thread has begun

        def begin() -> Iterator[np.ndarray]:
            for numbers in batches:
                begun.append(numbers % len(self.betons))
                yield begun[-1]

        thread = self.engine.start(begin(), draw)
        try:
            for index in count():
                began = perf_counter()
                made = next(thread, None)
                self.wait_seconds += perf_counter() - began
                if made is None:
                    return
                yield Batch(*made, begun.popleft(), *locate(index))
        finally:
            thread.close()

    def pop_timings(self) -> dict[str, float]:
        """Return the loader's working time in seconds since the last call. It overlaps with the consumer's work.

        The times are summed over the loader's threads: `read` is wall time, `decode` and `augment` are CPU time. With
        a GPU, `copy` and `augment` are GPU time.
        """
        return self.stage.pop_timings()

    def close(self) -> None:
        """End the pass in progress and its thread, and free the decoders."""
        self.closed = True
        self.engine.close()
        self.stage.close()

    def _describe(self, samples: int, batches: int, more: str = "") -> str:
        """Describe in one line, for notebooks, what the loader delivers."""
        images, classes = counted(samples, "images"), counted(self.num_classes, "classes")
        state = "closed" if self.closed else f"{batches:,} batches of {self.batch}"
        size, device = self.output.size, torch.device(self.output.device)
        return (
            f"<{type(self).__name__} {self.betons.title}: {images}, {classes}, {state} at {size} px on {device}{more}>"
        )

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TrainLoader(_BetonLoader):
    """Load augmented micro-batches in a seeded order. World size and worker count do not change the images.

    Each iteration is one epoch: the first iteration is epoch 0, the next one is epoch 1. `state_dict` holds the
    position, even in the middle of an epoch, and a loader that loads it continues with the next micro-batch. If a
    sample cannot be decoded, the loop that iterates raises `SampleError`.

    Args:
        data: a `.beton` file written by `fastft convert` or by FFCV, a pattern such as "train-*.beton", several files
            (see `find_betons`), or files that are already open. Samples are numbered through all files.
        policy: augmentation policy, or a string such as "rand-m9-mstd0.5-inc1", "3aug" or "none" (see
            `AugmentPolicy`).
        output: image size, device and dtype. A number is the size in pixels and gives float32 images on the CPU.
        batch_size: images per optimiser step, summed over all processes.
        micro_batch: images per delivered batch (default: this process's part of `batch_size`). `batch_size` must be
            divisible by world_size * micro_batch.
        seed: seed for the order and for all random choices.
        shard: this process's rank, and the world size.
        order: "random", or "blocks" for files that do not fit into memory (see `fastft.data.order`).
        block_mib: block size in MiB. Three blocks must fit into memory.
        sampling: "balanced" or "sqrt" draw rare classes more often (see `data.sampling`).
        subset: int64 (n,), indices of the samples to train on (default: all).
        workers: number of threads (default: the number of CPUs, divided among the processes on this machine).
        batches_ahead: batches to prepare in advance, including the one in progress. At least 2. Raise it if the time
            between your requests varies a lot.

    Raises:
        UserError: a file is not a complete `.beton`, the files contradict each other, or an argument does not fit
            them.
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
            self.num_samples, len(self), f", augmentation {self.policy.augment}, next epoch {self._next[0]}"
        )

    def resize(self, size: int, micro_batch: int) -> None:
        """Deliver images in this size, `micro_batch` per batch, from the next pass on.

        A change ends the pass in progress.

        Raises:
            UserError: in the same cases as the constructor.
        """
        if (size, micro_batch) == (self.output.size, self.batch):
            return
        layout = replace(self.layout, micro_batch=micro_batch)
        check_shrink(self.betons, self.output.device, size)
        self.engine.close()
        self.stage.resize(size, micro_batch)
        self.batch = micro_batch
        self.layout, self.output = layout, replace(self.output, size=size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Iterate over an epoch's micro-batches in order, from step `start_step` on.

        Iterating ends this loader's earlier pass.

        Raises:
            UserError: `start_step` is not in the epoch.
        """
        self.layout.check_step(start_step)
        return self._read_epoch(epoch, start_step)

    def _read_epoch(self, epoch: int, start_step: int) -> Iterator[Batch]:
        self._check_open()
        read_ahead, policy = self.order.read_ahead(epoch, self.layout, start_step), self.policy
        drawn: deque[np.ndarray] = deque()  # sample numbers for the batch that is made now

        def batches() -> Iterator[np.ndarray]:
            for numbers in self.order.batches(epoch, self.layout, start_step):
                drawn.append(numbers)
                yield numbers

        def draw(ids: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
            if read_ahead is not None:
                read_ahead.advance(len(ids))
            return draw_plan(
                policy, seed=self.seed, epoch=epoch, sample_ids=drawn.popleft(), heights=heights, widths=widths,
                size=self.output.size,
            )  # fmt: skip

        with nullcontext() if read_ahead is None else closing(read_ahead):
            yield from self._batches(batches(), draw, partial(self.layout.locate, start_step=start_step))

    def close(self) -> None:
        """End the pass in progress and its threads, and free the decoders."""
        self.order.close()
        super().close()

    @property
    def _per_step(self) -> int:  # this process's micro-batches
        return self.layout.rank_batch // self.batch

    def samples_of_step(self, epoch: int, step: int) -> np.ndarray:
        """Return the sample indices in a step's global batch, int64 (batch_size,)."""
        batch = self.layout.batch_size
        return self.order.of_epoch(epoch).between(step * batch, (step + 1) * batch) % len(self.betons)

    def __len__(self) -> int:
        """Return how many micro-batches this process delivers per epoch."""
        return self.steps_per_epoch * self._per_step

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the next epoch's micro-batches, or after `load_state_dict` over an epoch's remaining ones."""
        epoch, done = self._next
        self._next, self._position = (epoch + 1, 0), (epoch, done)
        for batch in islice(self.epoch(epoch, done // self._per_step), done % self._per_step, None):
            done += 1
            self._position = (epoch, done) if done < len(self) else (epoch + 1, 0)
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at the beginning of this epoch."""
        self._next = self._position = (epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last delivered micro-batch, for `load_state_dict`."""
        epoch, done = self._position
        step, inner = divmod(done, self._per_step)
        return {
            "epoch": epoch, "step": step, "micro_batch_of_step": inner, "seed": self.seed, "num_samples": self.num_samples,
            "batch_size": self.layout.batch_size, "order": self.order.name,
            "world_size": self.layout.shard.world_size, "micro_batch": self.batch,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the loader that returned `state` stopped. That loader may have had another world size.

        Raises:
            UserError: the state belongs to another file, seed or batch size, or it lies within a step that is divided
                differently.
        """
        own = self.state_dict()
        if missing := own.keys() - state.keys():
            raise UserError(f"not a loader's state: it has no {min(missing)}. Give what state_dict() returned")
        layout = () if state["micro_batch_of_step"] == 0 else ("world_size", "micro_batch")
        for name in ("seed", "num_samples", "batch_size", "order", *layout):
            if state[name] != own[name]:
                raise UserError(
                    f"the loader's state was saved with {name} {state[name]}, but this loader has {own[name]}"
                )
        done = state["step"] * self._per_step + state["micro_batch_of_step"]
        self._next = self._position = (state["epoch"], done)


class EvalLoader(_BetonLoader):
    """Load batches for evaluation: every sample exactly once at any world size, in file order.

    Each rank reads a contiguous part of the samples, and no sample is repeated to fill a batch. The short side is
    resized to size / crop_pct (with eval_resize="squash" both sides), then the central size x size is cropped. Only
    crop_pct, eval_resize, eval_interpolation, mean and std in `policy` are used.

    `num_samples` counts all ranks' samples. `indices` selects the samples to evaluate (default: all). For the
    other arguments and the errors, see `TrainLoader`.
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
        if indices is not None:
            indices = _checked_indices(self.betons, indices)
        self.num_samples = self.betons.num_samples if indices is None else len(indices)
        self.first, end = eval_share(self.num_samples, shard)
        self.share = np.arange(self.first, end) if indices is None else indices[self.first : end]
        self._allocate()

    def __repr__(self) -> str:
        return self._describe(self.num_samples, len(self))

    def __len__(self) -> int:
        """Return how many batches this process delivers."""
        return -(-len(self.share) // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        p = self.policy

        def draw(ids: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
            return eval_plan(ids, heights, widths, self.output.size, p.crop_pct, p.eval_interpolation, p.eval_resize)

        batches = (self.share[begin : begin + self.batch] for begin in range(0, len(self.share), self.batch))
        return self._batches(batches, draw, lambda index: (index, self.first + index * self.batch))


class AsTuples:
    """Wrap a loader so that each batch is a tuple (images, labels), instead of a `Batch`.

    Args:
        copy: return tensors that stay valid after the next batch is requested. Without it, the images are a view into a
            buffer that the loader reuses. This suits a loop that has finished with a batch before it requests the
            next one.
    """

    def __init__(self, loader: TrainLoader | EvalLoader, *, copy: bool = False) -> None:
        self.loader, self.copy = loader, copy

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in ((batch.images, batch.labels) for batch in self.loader):
            yield (images.clone(), labels.clone()) if self.copy else (images, labels)


def _check_device(device: torch.device | str) -> None:
    """Raise UserError unless `device` is the CPU or a GPU that torch finds."""
    try:
        known = torch.device(device)
        if known.type not in ("cpu", "cuda"):
            raise TypeError
    except (RuntimeError, TypeError):
        raise UserError(f"device is {device}. Give cpu or cuda") from None
    if known.type == "cuda" and (known.index or 0) >= (gpus := torch.cuda.device_count()):
        raise UserError(f"device is {device}, but torch finds {gpus or 'no'} GPUs. Run 'nvidia-smi', or give another")


def default_workers() -> int:
    """Return how many CPUs each process on this machine may use.

    The launcher's CPUs are divided by torchrun's LOCAL_WORLD_SIZE. With `torchrun --numa-binding`, a process itself only
    has the CPUs on its GPU's node, so dividing these would give too few.
    """
    processes = torchrun.local_world_size()
    return usable_cpus() if processes == 1 else max(1, min(usable_cpus(), usable_cpus(os.getppid()) // processes))


def _checked_indices(betons: BetonSet, indices: np.ndarray) -> np.ndarray:
    indices = np.asarray(indices)
    if indices.ndim != 1 or not (np.issubdtype(indices.dtype, np.integer) or len(indices) == 0):
        raise UserError(f"{betons.title}: indices must be sample numbers. For a mask give np.flatnonzero(mask)")
    indices = indices.astype(np.int64)
    if len(indices) and not 0 <= indices.min() <= indices.max() < betons.num_samples:
        raise UserError(f"{betons.title}: indices must be from 0 to {betons.num_samples - 1}")
    return indices
