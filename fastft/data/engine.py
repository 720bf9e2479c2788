"""A thread that prepares batches ahead of their consumer.

Slots, queue and CUDA streams are as in FFCV's `EpochIterator`. FFCV's own thread is not used, because it comes with
FFCV's reader and compiled pipelines. The reader's index from samples to pages takes 2.3 s and 634 MB for ImageNet.
The pipelines leak, because Numba never frees compiled code: 1 MB per loader. An error in FFCV's thread leaves the
consumer waiting.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import torch

from fastft.data.slots import count_slots
from fastft.data.stage import DrawPlan, Stage


class Pass(Thread):
    """The thread that turns `batches`, which are sample ids, into images and labels. The consumer iterates over it.

    An error in the thread is raised in the consumer.
    """

    def __init__(self, engine: "Engine", batches: Iterable[np.ndarray], draw: DrawPlan) -> None:
        super().__init__(daemon=True)
        self.engine, self.batches, self.draw, self.closed = engine, batches, draw, False
        # A signal handler may raise while the consumer waits for one of these. `queue.Queue` would stay locked.
        self.free: SimpleQueue[Any] = SimpleQueue()  # (slot, CUDA event after its last use)
        self.ready: SimpleQueue[Any] = SimpleQueue()  # (slot, batch) or (None, error)
        self._taken: int | None = None  # slot that holds the consumer's batch
        for slot in range(engine.num_slots):
            self.free.put((slot, None))

    def run(self) -> None:
        e = self.engine
        try:
            if e.streams:
                # in a new thread device 0 is current, so each process on a node would create a context on GPU 0
                torch.cuda.set_device(e.stage.device)
            for ids in self.batches:
                slot, used = self.free.get()
                if self.closed:
                    return
                with torch.cuda.stream(e.streams[slot]) if e.streams else nullcontext():
                    if used is not None:
                        used.wait()
                    batch = e.stage.run(ids, slot, self.draw)
                self.ready.put((slot, batch))
            self.ready.put((None, StopIteration()))
        except BaseException as error:
            self.ready.put((None, error))

    def __iter__(self) -> "Pass":
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the next batch.

        The previous batch may be overwritten, because all work that uses it is queued by now.
        """
        if self.closed:
            raise RuntimeError(
                "this pass over the data is closed, because a later pass started or its loader was closed"
            )
        stream = torch.cuda.current_stream(self.engine.stage.device) if self.engine.streams else None
        taken, self._taken = self._taken, None
        if taken is not None:
            self.free.put((taken, None if stream is None else stream.record_event()))
        self._taken, batch = self.ready.get()
        if isinstance(batch, BaseException):
            self.close()
            try:
                raise batch
            finally:  # its traceback has this frame, which would keep the loader's memory until a garbage collection
                del batch
        if stream is not None:
            stream.wait_stream(self.engine.streams[self._taken])
            for tensor in batch:  # a tensor that you keep is not overwritten while the GPU still reads it
                tensor.record_stream(stream)
        return batch

    def close(self) -> None:
        """End the thread and wait for its end, which the batch in progress can delay."""
        self.closed = True
        self.free.put((0, None))  # the thread may be waiting for this
        if self.is_alive():
            self.join()


class Engine:
    """Runs passes over samples through a stage, one at a time.

    Args:
        batches_ahead: batches to prepare in advance, including the one in progress. At least 2.
    """

    def __init__(self, stage: Stage, *, batches_ahead: int) -> None:
        self.stage = stage
        self.num_slots, device = count_slots(batches_ahead), stage.device
        # the same in all passes, because torch caches memory by stream
        self.streams = [torch.cuda.Stream(device) for _ in range(self.num_slots if device.type == "cuda" else 0)]
        self.thread: Pass | None = None

    def start(self, batches: Iterable[np.ndarray], draw: DrawPlan) -> Pass:
        """Begin a pass over `batches`, sample ids int64 (b,), with plans from `draw`. This ends the previous pass."""
        self.close()
        for stream in self.streams:  # the previous pass's last batches may still be in use
            stream.wait_stream(torch.cuda.current_stream(self.stage.device))
        self.thread = Pass(self, batches, draw)  # stored before it starts: Ctrl-C in between would leave it running
        self.thread.start()
        return self.thread

    def close(self) -> None:
        """End the pass in progress."""
        if self.thread is not None:
            self.thread.close()
            self.thread = None
