"""`fastft.data.engine` depends on internals of FFCV 1.0.2. These tests fail when the internals change."""

import os
import subprocess
import sys
import threading
import time
from importlib.metadata import version

import numpy as np
import pytest

from beton_tools.read.beton_set import BetonSet
from fastft.data import engine as engine_module
from fastft.data.engine import Engine, EpochIterator
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


class FakeStream:
    def __init__(self, log):
        self.log = log

    def wait_stream(self, other):
        self.log.append("wait_stream")


def test_the_thread_selects_its_gpu_before_anything_else(engine, monkeypatch):
    """Otherwise each process of a node would create a CUDA context on GPU 0. CUDA is replaced by stubs."""
    log = []
    device = engine_module.torch.device("cuda", 3)
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)
    thread = engine.start(np.arange(5), None)
    monkeypatch.setattr(engine.stage, "device", device)
    monkeypatch.setattr(engine_module, "IS_CUDA", True)
    monkeypatch.setattr(engine_module.torch.cuda, "set_device", lambda d: log.append(("set_device", d)))
    monkeypatch.setattr(EpochIterator, "run", lambda self: log.append("run"))
    thread.current_stream, thread.cuda_streams = None, [FakeStream(log)]
    thread.run()
    assert log == [("set_device", device), "wait_stream", "run"]


def test_a_pass_can_be_closed_while_the_thread_waits_for_a_place(engine):
    thread = engine.start(np.arange(50), None)
    next(thread)
    time.sleep(0.2)
    engine.close()
    assert not thread.is_alive()


def test_the_loaders_import_of_ffcv_only_its_thread_and_leave_ffcv_and_torchs_threads_as_they_are():
    """OpenCV, SciPy's linear algebra and pyarrow are for conversion and other commands: 150 MB."""
    code = (
        "import sys, torch; n = torch.get_num_threads(); import fastft.data.loader; assert torch.get_num_threads() == n; "
        "heavy = {'ffcv', 'cv2', 'pyarrow', 'setuptools'} & set(sys.modules); assert not heavy, heavy; "
        "import ffcv.loader.epoch_iterator as stock; from fastft.data import engine; "
        "assert stock.__file__ == engine.epoch_iterator.__file__; from ffcv.loader import Loader"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
