"""`fastft.data.engine` depends on internals of FFCV 1.0.2. These tests fail when the internals change."""

import inspect
import os
import re
import subprocess
import sys
import time
from importlib.metadata import version

import numpy as np
import pytest

from beton_tools.read.beton_set import BetonSet
from fastft.data import engine as engine_module
from fastft.data.engine import Engine, EpochIterator
from fastft.data.ffcv_import import import_epoch_iterator
from fastft.data.stage import Stage


class Ids(Stage):
    """Returns the ids and the slot of a batch instead of images and labels."""

    def resize(self, size, batch):
        raise NotImplementedError

    def run(self, ids, slot, draw):
        return ids, slot


@pytest.fixture
def engine(stock_beton):
    stage = Ids(BetonSet.open(stock_beton("jpg")), 8, 1)
    engine = Engine(stage, batch_size=5, workers=1, batches_ahead=2)
    yield engine
    engine.close()
    stage.close()


def test_ffcv_is_the_version_that_the_engine_was_written_for():
    assert version("ffcv") == "1.0.2"


def test_the_engine_has_every_attribute_that_ffcv_reads(engine):
    used = [inspect.getsource(getattr(EpochIterator, method)) for method in ("__init__", "run", "close")]
    # after a MemoryError only
    read = set(re.findall(r"\bloader\.(\w+)", "".join(used))) - {"traversal_order"}
    assert read == {"reader", "memory_manager", "graph", "batch_size", "num_workers", "batches_ahead"}
    assert [name for name in sorted(read) if not hasattr(engine, name)] == []


def test_batches_come_in_order_and_slots_in_rotation(engine):
    order = np.arange(44)[::-1].copy()
    batches = list(engine.start(order, None))
    assert np.array_equal(np.concatenate([ids for ids, _ in batches]), order)
    assert [slot for _, slot in batches] == [b % Engine.slots(2) for b in range(9)]


def test_no_batch_is_kept_beyond_those_prepared_in_advance(engine):
    """The consumer's batch and two more, of which one is in progress; FFCV itself would keep a fourth."""
    assert Engine.slots(2) == 3
    thread = engine.start(np.arange(50), None)
    next(thread)
    time.sleep(0.5)
    # the third, which waits for its place
    assert thread.output_queue.qsize() == 1 and thread.current_batch_slot == 0


def test_the_methods_that_are_overridden_exist_in_ffcv():
    for method in ("run", "run_pipeline", "__next__", "close"):
        assert method in vars(EpochIterator)
    assert list(inspect.signature(EpochIterator.run_pipeline).parameters)[1:] == [
        "b_ix", "batch_indices", "batch_slot", "cuda_event",
    ]  # fmt: skip
    assert "except StopIteration" in inspect.getsource(EpochIterator.run)
    assert "self.start()" in inspect.getsource(EpochIterator.__init__)


def test_the_engine_holds_a_thread_before_it_runs(engine, monkeypatch):
    """Ctrl-C while a pass starts must not leave a thread that no `close` ends."""
    held = []
    monkeypatch.setattr(Ids, "run", lambda self, ids, slot, draw: (held.append(engine.thread), slot))
    thread = engine.start(np.arange(5), None)
    next(thread)
    assert held == [thread]


class FakeStream:
    def __init__(self, log):
        self.log = log

    def wait_stream(self, other):
        self.log.append("wait_stream")


def test_the_thread_selects_its_gpu_before_anything_else(engine, monkeypatch):
    """Otherwise each process of a node would create a CUDA context on GPU 0. CUDA is replaced by stubs."""
    log = []
    device = engine_module.torch.device("cuda", 3)
    thread = engine_module.EpochThread(engine, np.arange(5), None)  # not launched
    monkeypatch.setattr(engine.stage, "device", device)
    monkeypatch.setattr(engine_module, "IS_CUDA", True)
    monkeypatch.setattr(engine_module.torch.cuda, "set_device", lambda d: log.append(("set_device", d)))
    monkeypatch.setattr(EpochIterator, "run", lambda self: log.append("run"))
    thread.current_stream, thread.cuda_streams = None, [FakeStream(log)]
    thread.run()
    assert log == [("set_device", device), "wait_stream", "run"]


def test_ffcv_finds_out_about_cuda_once():
    """`IS_CUDA` is imported by value: the engine and FFCV must not differ."""
    assert engine_module.IS_CUDA is import_epoch_iterator().IS_CUDA


def test_one_batch_in_advance_is_begun_when_its_slot_is_free(engine, monkeypatch):
    """Two slots: the consumer's batch, and one finished or in progress."""
    begun = []
    monkeypatch.setattr(Ids, "run", lambda self, ids, slot, draw: (begun.append(slot), ids[0], slot)[1:])
    small = Engine(engine.stage, batch_size=5, workers=1, batches_ahead=1)
    assert small.num_slots == 2
    for number, (first, slot) in enumerate(small.start(np.arange(25), None)):
        time.sleep(0.1)
        assert (first, slot) == (5 * number, number % 2)
        assert len(begun) == min(number + 2, 5)
    small.close()


def test_an_interrupted_wait_frees_no_slot_twice(engine, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    small = Engine(engine.stage, batch_size=5, workers=1, batches_ahead=1)
    thread = small.start(np.arange(25), None)
    next(thread)
    for _ in range(2):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(thread, "_wait_for_result", interrupt)
            next(thread)
    time.sleep(0.2)  # the thread takes the slot of the first batch
    assert not thread.free_slots.acquire(blocking=False)
    assert [slot for _, slot in thread] == [1, 0, 1, 0]
    small.close()


def test_a_pass_can_be_closed_while_it_waits_for_a_slot(engine):
    small = Engine(engine.stage, batch_size=5, workers=1, batches_ahead=1)
    thread = small.start(np.arange(25), None)
    next(thread)
    time.sleep(0.2)
    began = time.monotonic()
    small.close()
    assert not thread.is_alive() and time.monotonic() - began < 5


def test_the_loaders_import_of_ffcv_only_its_thread_and_leave_ffcv_usable():
    """OpenCV, SciPy's linear algebra and pyarrow are for conversion and other commands: 150 MB."""
    code = (
        "import sys, fastft.data.loader; heavy = {'ffcv', 'cv2', 'pyarrow', 'setuptools'} & set(sys.modules); "
        "assert not heavy, heavy; import ffcv.loader.epoch_iterator as stock; from fastft.data import engine; "
        "assert stock.__file__ == engine.epoch_iterator.__file__; from ffcv.loader import Loader"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert subprocess.run([sys.executable, "-c", "import ffcv, fastft.data.loader"]).returncode == 0


def test_importing_the_loaders_does_not_change_the_threads_of_torch() -> None:
    code = (
        "import torch; n = torch.get_num_threads(); from fastft.data import TrainLoader; "
        "assert torch.get_num_threads() == n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
