"""FFCV 1.0.2's loader thread with its slots, queue and CUDA streams, running one `Stage`.

`EpochThread` overrides parts of FFCV's `EpochIterator`; `Engine` has the attributes that the rest of it reads. Both depend
on FFCV's internals, which is why FFCV is pinned; `tests/data/test_ffcv_contract.py` fails when those internals change.

FFCV's reader and its compiled pipelines are not used. The index that the reader builds from samples to pages takes 2.3 s and
634 MB for ImageNet. A pipeline is compiled for every loader, and Numba never frees the compiled code: 1 MB per loader.
"""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from queue import Empty, Full
from threading import Semaphore
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastft.data.ffcv_import import import_epoch_iterator
from fastft.data.stage import DrawPlan, Stage

if TYPE_CHECKING:
    from ffcv.loader.epoch_iterator import IS_CUDA, EpochIterator
else:
    epoch_iterator = import_epoch_iterator()
    IS_CUDA, EpochIterator = epoch_iterator.IS_CUDA, epoch_iterator.EpochIterator

POLL_SECONDS = 0.1  # between two looks at a thread that is waited for


class EpochThread(EpochIterator):
    """The thread that runs one pass over given samples; the consumer iterates over it.

    In contrast to FFCV's, an error of the thread is raised in the consumer (FFCV: the consumer waits for ever), and
    closing the iterator ends the thread.
    """

    def __init__(self, engine: "Engine", order: np.ndarray, draw: DrawPlan) -> None:
        self.stage, self.draw, self.on_wait = engine.stage, draw, engine.on_wait
        self.torch_threads = torch.get_num_threads()
        self.num_slots = engine.num_slots
        self.free_slots = Semaphore(self.num_slots)
        self.delivered = False  # whether the consumer has a batch
        super().__init__(engine, order)

    def start(self) -> None:
        """Do nothing: FFCV's constructor calls this before the engine holds the thread and could end it.

        Ctrl-C in that moment would leave a thread that nobody ends.
        """

    def launch(self) -> None:
        """Start the thread."""
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
            self._publish_error(error)

    def _reuse_streams(self) -> None:
        """Use the streams of the previous pass, because torch caches memory by stream; wait for its last batches.

        FFCV records an event on the consumer's stream after each batch, from this thread. A consumer that captures a
        CUDA graph must therefore capture on another stream, with `capture_error_mode="thread_local"`.
        """
        self.loader.streams = self.loader.streams or self.cuda_streams
        self.cuda_streams: list[torch.cuda.Stream] = self.loader.streams
        for stream in self.cuda_streams:
            stream.wait_stream(self.current_stream)

    def _publish_error(self, error: BaseException) -> None:
        while not self.terminate_event.is_set():
            with suppress(Full):
                return self.output_queue.put((0, error), timeout=0.1)

    def run_pipeline(self, b_ix: int, batch_indices: np.ndarray, batch_slot: int, cuda_event: Any) -> Any:
        """Images and labels of one batch. FFCV calls this in its loop, with its own names of the arguments.

        FFCV's slots, which number its streams, are at least three. The stage may have two.
        """
        self.free_slots.acquire()
        if self.terminate_event.is_set():
            raise StopIteration
        if b_ix == 0:
            torch.set_num_threads(self.torch_threads)  # FFCV has just set it to the number of workers
        slot = b_ix % self.num_slots
        if self.stage.device.type != "cuda":
            return self.stage.run(batch_indices, slot, self.draw)
        with torch.cuda.stream(self.cuda_streams[batch_slot]):
            if cuda_event is not None:  # the consumer's last use of this slot
                cuda_event.wait()
            return self.stage.run(batch_indices, slot, self.draw)

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.terminate_event.is_set():
            raise RuntimeError(
                "this pass over the data is closed: a later pass started, or its loader was closed"
            )
        if self.delivered:
            self.delivered = False
            self.free_slots.release()
        self._wait_for_result()
        self.delivered = True
        result = super().__next__()
        if isinstance(result, BaseException):
            self.close()
            raise result
        return result

    def _wait_for_result(self) -> None:
        """Return when the queue has an entry, which FFCV then takes without waiting.

        FFCV waits without a limit. `on_wait` is called meanwhile, so that Ctrl-C can end the wait.
        """
        queue = self.output_queue
        while queue.empty():
            with queue.not_empty:
                queue.not_empty.wait_for(queue._qsize, POLL_SECONDS)
            self.on_wait()
            if queue.empty() and not self.is_alive():
                raise RuntimeError("the loader's thread ended without an error or a result")

    def close(self) -> None:
        """End the thread and wait for its end, which the batch in progress can delay."""
        super().close()
        self.free_slots.release()  # the thread may wait for one
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


def _queue_length(batches_ahead: int) -> int:
    """Finished batches that wait. One more is in progress: together they are the batches prepared in advance.

    With one batch in advance, the thread waits for a free slot before it begins another.
    """
    return max(1, batches_ahead - 1)  # 0 would be a queue without a limit


class Engine:
    """Runs passes over samples through a stage, one at a time."""

    def __init__(
        self,
        stage: Stage,
        *,
        batch_size: int,
        workers: int,
        batches_ahead: int,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        """on_wait: called in the consumer while it waits for a batch; what it raises ends the wait."""
        self.stage, self.on_wait = stage, on_wait
        self.batch_size, self.num_workers = batch_size, workers
        self.batches_ahead = _queue_length(batches_ahead)  # FFCV's name
        self.num_slots = self.slots(batches_ahead)
        self.reader = self.memory_manager = self.graph = _Unused()
        self.streams: list[Any] = []
        self.thread: EpochThread | None = None

    @staticmethod
    def slots(batches_ahead: int) -> int:
        """How many batches there are at a time: one with the consumer, the others finished or in progress."""
        return batches_ahead + 1

    @staticmethod
    def num_streams(batches_ahead: int) -> int:
        """How many CUDA streams FFCV takes in turn; torch keeps the memory of one batch for each."""
        return _queue_length(batches_ahead) + 2

    def start(self, order: np.ndarray, draw: DrawPlan) -> EpochThread:
        """Begin a pass over the samples `order`, with plans from `draw`; ends the previous pass."""
        self.close()
        device = self.stage.device
        # FFCV creates its streams on the current device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self.thread = EpochThread(self, order, draw)
        self.thread.launch()
        return self.thread

    def close(self) -> None:
        """End the pass in progress."""
        if self.thread is not None:
            self.thread.close()
            self.thread = None
