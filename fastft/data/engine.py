"""FFCV 1.0.2's loader thread with its slots, queue and CUDA streams, running one `Stage`.

`EpochThread` is FFCV's `EpochIterator` with another pipeline; `Engine` has the attributes that `EpochIterator` reads. Both
depend on FFCV's internals, which is why FFCV is pinned; `tests/data/test_ffcv_contract.py` fails when those internals change.

FFCV's reader and its compiled pipelines are not used. The index that the reader builds from samples to pages takes 2.3 s and
634 MB for ImageNet. A pipeline is compiled for every loader, and Numba never frees the compiled code: 1 MB per loader.
"""

import importlib
import sys
from contextlib import nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, Full
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastft.data.stage import DrawPlan, Stage

PRIVATE = "fastft_ffcv"
POLL_SECONDS = 0.1  # between two looks at a thread that is waited for


def _import_epoch_iterator() -> ModuleType:
    """FFCV's module `loader.epoch_iterator` in a private package without FFCV's `__init__`.

    `import ffcv` loads OpenCV, SciPy, setuptools and FFCV's own C++ library, and compiles functions: 110 MB and a second
    that the loader has no use for. torch keeps its number of threads, which FFCV's import sets to one. Raises ImportError:
    FFCV is not installed.
    """
    spec = find_spec("ffcv")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("FFCV is not installed; pip install ffcv==1.0.2", name="ffcv")
    folder = Path(spec.submodule_search_locations[0])
    for name in ("", "loader", "pipeline", "traversal_order"):
        package = ModuleType(f"{PRIVATE}.{name}".rstrip("."))
        package.__path__ = [str(folder / name)]
        sys.modules[package.__name__] = package
    # named by an error message only, but importing it would import the readers, fields and decoders
    order = ModuleType(f"{PRIVATE}.traversal_order.quasi_random")
    order.QuasiRandom = None  # type: ignore[attr-defined]
    sys.modules[order.__name__] = order
    threads = torch.get_num_threads()
    try:
        return importlib.import_module(f"{PRIVATE}.loader.epoch_iterator")
    finally:
        torch.set_num_threads(threads)


if TYPE_CHECKING:
    from ffcv.loader.epoch_iterator import IS_CUDA, EpochIterator
else:
    epoch_iterator = _import_epoch_iterator()
    IS_CUDA, EpochIterator = epoch_iterator.IS_CUDA, epoch_iterator.EpochIterator


class EpochThread(EpochIterator):
    """The thread that runs one pass over given samples; the consumer iterates over it.

    In contrast to FFCV's, an error of the thread is raised in the consumer (FFCV: the consumer waits for ever), and
    closing the iterator ends the thread.
    """

    def __init__(self, engine: "Engine", order: np.ndarray, draw: DrawPlan) -> None:
        self.stage, self.draw = engine.stage, draw
        self.torch_threads = torch.get_num_threads()
        super().__init__(engine, order)

    def start(self) -> None:
        """Start the thread when the engine holds it; FFCV's constructor calls this last. Ctrl-C in between would leave it."""
        self.loader.thread = self
        super().start()

    def run(self) -> None:
        try:
            if self.stage.device.type == "cuda":
                # In a new thread device 0 is current, and `torch.cuda.stream` restores it after every batch:
                # each process of a node would create a context on GPU 0.
                torch.cuda.set_device(self.stage.device)
            if IS_CUDA:
                self._reuse_streams()
            super().run()
        except BaseException as error:
            while not self.terminate_event.is_set():
                with suppress(Full):
                    return self.output_queue.put((0, error), timeout=POLL_SECONDS)

    def _reuse_streams(self) -> None:
        """Use the streams of the previous pass, because torch caches memory by stream; wait for its last batches.

        FFCV records an event on the consumer's stream after each batch, from this thread. A consumer that captures a
        CUDA graph must therefore capture on another stream, with `capture_error_mode="thread_local"`.
        """
        self.loader.streams = self.loader.streams or self.cuda_streams
        self.cuda_streams: list[torch.cuda.Stream] = self.loader.streams
        for stream in self.cuda_streams:
            stream.wait_stream(self.current_stream)

    def run_pipeline(self, b_ix: int, batch_indices: np.ndarray, batch_slot: int, cuda_event: Any) -> Any:
        """Images and labels of one batch. FFCV calls this in its loop, with its own names of the arguments."""
        if self.terminate_event.is_set():  # FFCV looks at it only while its queue is full
            raise RuntimeError("this pass is closed")
        if b_ix == 0:
            torch.set_num_threads(self.torch_threads)  # FFCV has just set it to the number of workers
        on_gpu = self.stage.device.type == "cuda"
        with torch.cuda.stream(self.cuda_streams[batch_slot]) if on_gpu else nullcontext():
            if on_gpu and cuda_event is not None:  # the consumer's last use of this slot
                cuda_event.wait()
            return self.stage.run(batch_indices, batch_slot, self.draw)

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.terminate_event.is_set():
            raise RuntimeError("this pass over the data is closed: a later pass started, or its loader was closed")
        result = super().__next__()
        if isinstance(result, BaseException):
            self.close()
            raise result
        return result

    def close(self) -> None:
        """End the thread and wait for its end, which the batch in progress can delay."""
        super().close()
        while self.is_alive():
            with suppress(Empty):
                self.output_queue.get(timeout=0.05)  # the thread may wait for a free place in the queue


class _Unused:
    """FFCV's reader, memory manager and graph, as far as `EpochIterator` uses them: no state, no buffers."""

    metadata = state = None

    def schedule_epoch(self, batches: list[np.ndarray]) -> "_Unused":
        return self

    def allocate_memory(self, batch_size: int, slots: int) -> None: ...

    def __enter__(self) -> "_Unused":
        return self

    def __exit__(self, *_: object) -> None: ...


class Engine:
    """Runs passes over samples through a stage, one at a time.

    Args:
        batches_ahead: batches that are prepared in advance, the one in progress included; at least 2, FFCV's minimum.
    """

    def __init__(self, stage: Stage, *, batch_size: int, workers: int, batches_ahead: int) -> None:
        self.stage = stage
        self.batch_size, self.num_workers = batch_size, workers
        self.batches_ahead = self.slots(batches_ahead) - 2  # FFCV's name for the length of its queue
        self.reader = self.memory_manager = self.graph = _Unused()
        self.streams: list[Any] = []
        self.thread: EpochThread | None = None

    @staticmethod
    def slots(batches_ahead: int) -> int:
        """Batches at a time, each with a buffer and a CUDA stream: one with the consumer, the others finished or in progress."""
        return max(3, batches_ahead + 1)

    def start(self, order: np.ndarray, draw: DrawPlan) -> EpochThread:
        """Begin a pass over the samples `order`, with plans from `draw`; ends the previous pass."""
        self.close()
        device = self.stage.device
        # FFCV creates its streams on the current device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return EpochThread(self, order, draw)

    def close(self) -> None:
        """End the pass in progress."""
        if self.thread is not None:
            self.thread.close()
            self.thread = None
