"""FFCV 1.0.2's engine, driven: its thread, slots, queue and streams, with narrow corrections.

Each class overrides what its docstring says and nothing else. They lean on FFCV's internals, which is why
FFCV is pinned; `tests/data/test_ffcv_contract.py` fails if those internals change.
"""

from contextlib import nullcontext, suppress
from queue import Empty, Full
from typing import Any

import numpy as np
import torch
from ffcv.loader import Loader
from ffcv.loader.epoch_iterator import IS_CUDA, EpochIterator
from ffcv.memory_managers import MemoryContext, MemoryManager
from ffcv.pipeline import PipelineSpec
from ffcv.pipeline.graph import Graph
from ffcv.reader import Reader
from ffcv.traversal_order.base import TraversalOrder

from beton_tools.format import IMAGE_TYPE, Beton
from fastft.data.stage import DrawPlan, SampleIds, Stage


class BetonReader(Reader):
    """The file as `Beton.open` has read and validated it: FFCV's own copy of both tables is left out."""

    def __init__(self, beton: Beton) -> None:
        self._fname, self._custom_handlers = str(beton.path), dict[str, Any]()
        self.read_header()
        self.read_field_descriptors()
        self.metadata = beton.metadata


class MappedFile(MemoryManager, MemoryContext):
    """The operating system's page cache, as FFCV's `OSCacheManager`, without its index from samples to pages.

    That index costs 2.3 s and 634 MB for ImageNet, and only QUASI_RANDOM and the process cache read it.
    Our operations find their bytes through `Beton.pointers`: there is no state and no reader to compile.
    """

    state = state_type = None

    def __init__(self) -> None: ...

    def schedule_epoch(self, batches: list[np.ndarray]) -> "MappedFile":
        return self

    def compile_reader(self) -> None: ...

    def __enter__(self) -> "MappedFile":
        return self

    def __exit__(self, *_: object) -> None: ...


class GivenOrder(TraversalOrder):
    """The order it was given: ours is cut for rank and resume before FFCV sees it."""

    def __init__(self) -> None:
        self.order = np.empty(0, np.int64)

    def sample_order(self, epoch: int) -> np.ndarray:
        return self.order


class EpochThread(EpochIterator):
    """Hands errors of the pipeline to the consumer (FFCV: a hang), and ends its thread when it is closed."""

    def __init__(self, loader: "Engine", order: np.ndarray) -> None:
        self.torch_threads = torch.get_num_threads()
        super().__init__(loader, order)

    def run(self) -> None:
        try:
            if IS_CUDA:
                self._keep_streams()
            super().run()
        except BaseException as error:
            self._hand_over(error)

    def _keep_streams(self) -> None:
        """Use the streams of the epoch before, as memory is cached by stream; wait for its last batches."""
        self.loader.streams = self.loader.streams or self.cuda_streams
        self.cuda_streams: list[torch.cuda.Stream] = self.loader.streams
        for stream in self.cuda_streams:
            stream.wait_stream(self.current_stream)

    def _hand_over(self, error: BaseException) -> None:
        while not self.terminate_event.is_set():
            with suppress(Full):
                return self.output_queue.put((0, error), timeout=0.1)

    def run_pipeline(self, b_ix: int, batch_indices: np.ndarray, batch_slot: int, cuda_event: Any) -> Any:
        if self.terminate_event.is_set():
            raise StopIteration
        if b_ix == 0:
            torch.set_num_threads(self.torch_threads)  # FFCV has just set it to its own number of workers
        self.loader.stage.slot = batch_slot
        return super().run_pipeline(b_ix, batch_indices, batch_slot, cuda_event)

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.terminate_event.is_set():
            raise RuntimeError(
                "this pass over the data has been closed: another one began, or its loader ended"
            )
        result = super().__next__()
        if isinstance(result, BaseException):
            self.close()
            raise result
        return result[0]

    def close(self) -> None:
        """Return when the thread has ended: after the batch in work at the latest."""
        super().close()
        while self.is_alive():
            with suppress(Empty):
                self.output_queue.get(timeout=0.05)  # it may be waiting for room in the queue


class Engine(Loader):
    """FFCV's loader with one image pipeline: sample ids, then `stage`.

    Sets what FFCV's iterator, graph and code generator read, in place of `Loader.__init__`, which hard-codes
    the memory manager and sets the number of torch's threads.
    """

    def __init__(
        self, beton: Beton, stage: Stage, *, batch_size: int, workers: int, batches_ahead: int
    ) -> None:
        self.reader, self.memory_manager = BetonReader(beton), MappedFile()
        self.batch_size, self.num_workers, self.batches_ahead = batch_size, workers, batches_ahead
        self.traversal_order, self.next_epoch = GivenOrder(), 0
        self.stage = stage
        self.streams: list[Any] = []
        self.thread: EpochThread | None = None
        name = next(field.name for field in beton.fields if field.type_id == IMAGE_TYPE)
        pipeline = {name: PipelineSpec(name, transforms=[SampleIds(), stage])}
        columns = {field: i for i, field in enumerate(self.reader.handlers)}
        self.graph = Graph(pipeline, self.reader.handlers, columns, beton.metadata, memory_read=None)
        self.generate_code()

    def start(self, order: np.ndarray, draw: DrawPlan) -> "EpochThread":
        """Run these samples through the pipeline; ends the run before."""
        self.close()
        self.traversal_order.order, self.stage.draw = order, draw
        return iter(self)

    def __iter__(self) -> "EpochThread":
        device = self.stage.device
        with (
            torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        ):  # FFCV makes its streams there
            self.thread = EpochThread(self, self.next_traversal_order())
        self.next_epoch += 1
        return self.thread

    def close(self) -> None:
        if self.thread is not None:
            self.thread.close()
            self.thread = None
