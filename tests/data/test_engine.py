"""The loader's thread: order, slots, what is prepared in advance, and how it ends."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from beton_tools.read.beton_set import BetonSet
from fastft.data import engine as engine_module
from fastft.data.engine import Engine
from fastft.data.slots import count_slots
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
    engine = Engine(stage, batches_ahead=2)
    yield engine
    engine.close()
    stage.close()


def test_batches_come_in_order_and_slots_in_rotation(engine):
    order = np.arange(44)[::-1].copy()
    batches = list(engine.start(np.split(order, range(5, 44, 5)), None))
    assert np.array_equal(np.concatenate([ids for ids, _ in batches]), order)
    assert [slot for _, slot in batches] == [b % count_slots(2) for b in range(9)]


def test_no_batch_is_kept_beyond_those_prepared_in_advance(engine):
    """The consumer's batch and two more, of which one is in progress."""
    assert count_slots(2) == 3
    thread = engine.start(np.arange(50).reshape(-1, 5), None)
    next(thread)
    time.sleep(0.5)
    assert thread.ready.qsize() == 2 and thread.free.empty()


class FakeStream:
    """A CUDA stream, or an event, that only writes down what is asked of it."""

    def __init__(self, log, name):
        self.log, self.name = log, name

    def wait_stream(self, other):
        self.log.append((self.name, "waits for", other.name))

    def record_event(self):
        return FakeStream(self.log, f"event of {self.name}")

    def wait(self):
        self.log.append(("loader waits for", self.name))


def test_on_a_gpu_a_slot_is_overwritten_after_its_last_use_and_read_after_its_copy(engine, monkeypatch):
    """Otherwise batches mix. The thread selects its GPU first: each process of a node would create a context on GPU 0."""
    log, cuda = [], engine_module.torch.cuda
    monkeypatch.setattr(cuda, "set_device", lambda device: log.append(("set_device", device)))
    monkeypatch.setattr(cuda, "current_stream", lambda device: FakeStream(log, "consumer"))
    monkeypatch.setattr(cuda, "stream", lambda stream: engine_module.nullcontext())
    monkeypatch.setattr(engine.stage, "device", device := engine_module.torch.device("cuda", 3))
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)
    engine.streams = [FakeStream(log, slot) for slot in range(3)]
    thread = engine.start(np.arange(20).reshape(-1, 5), None)  # 4 batches
    assert log == [(slot, "waits for", "consumer") for slot in range(3)]
    log.clear()
    batch = [SimpleNamespace(record_stream=lambda stream: None)] * 2
    thread.ready.put((0, batch))
    thread.ready.put((1, batch))
    assert next(thread) is next(thread) is batch
    assert log == [("consumer", "waits for", 0), ("consumer", "waits for", 1)]
    log.clear()
    thread.run()
    assert log == [("set_device", device), ("loader waits for", "event of consumer")]  # before it overwrites slot 0


def test_a_pass_can_be_closed_while_the_thread_waits_for_a_place(engine):
    thread = engine.start(np.arange(50).reshape(-1, 5), None)
    next(thread)
    time.sleep(0.2)
    engine.close()
    assert not thread.is_alive()
