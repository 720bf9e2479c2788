"""`fastft.data.engine` leans on the inside of FFCV 1.0.2. These fail when that inside changes."""

import inspect
import os
import re
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
from ffcv.loader import Loader
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.pipeline.graph import Graph

from beton_tools.format import Beton
from fastft.data.engine import Engine
from fastft.data.stage import Stage


class Ids(Stage):
    """Instead of images, the ids themselves and the slot they were made in."""

    def run(self, ids):
        return ids, self.slot


@pytest.fixture
def engine(stock_beton):
    beton = Beton.open(stock_beton("jpg"))
    stage = Ids(beton, 8, 1)
    with_engine = Engine(beton, stage, batch_size=5, workers=1, batches_ahead=2)
    yield with_engine
    with_engine.close()
    stage.close()


def test_ffcv_is_the_version_that_was_read():
    assert version("ffcv") == "1.0.2"


def test_the_engine_has_every_attribute_that_ffcv_reads(engine):
    source = inspect.getsource(EpochIterator)
    read = set(re.findall(r"\bloader\.(\w+)", source))
    for method in (Loader.next_traversal_order, Loader.generate_code):
        read |= set(re.findall(r"\bself\.(\w+)", inspect.getsource(method)))
    assert read >= {"reader", "memory_manager", "graph", "code", "num_workers"}
    assert [name for name in sorted(read) if not hasattr(engine, name)] == []


def test_batches_come_in_order_and_slots_in_rotation(engine):
    order = np.arange(44)[::-1].copy()
    made = list(engine.start(order, None))
    assert np.array_equal(np.concatenate([ids for ids, _ in made]), order)
    assert [slot for _, slot in made] == [b % 4 for b in range(9)], "batches_ahead + 2 slots"


def test_ffcv_compiles_first_stages_only_and_asks_nothing_of_us_again(engine):
    """Each epoch FFCV asks for memory and code anew; with no request there is nothing to allocate."""
    assert [len(stage) for stage in engine.graph.group_operations()] == [1, 1]
    buffers = engine.graph.allocate_memory(5, 4)
    assert set(buffers["operation"].values()) | set(buffers["shared"].values()) == {None}


def test_the_methods_that_are_overridden_exist_in_ffcv():
    for method in ("run", "run_pipeline", "__next__", "close"):
        assert method in vars(EpochIterator)
    assert list(inspect.signature(EpochIterator.run_pipeline).parameters)[1:] == [
        "b_ix", "batch_indices", "batch_slot", "cuda_event",
    ]  # fmt: skip
    assert "except StopIteration" in inspect.getsource(EpochIterator.run)
    assert list(inspect.signature(Graph).parameters)[:4] == [
        "pipeline_specs", "handlers", "fieldname_to_fix", "metadata",
    ]  # fmt: skip


def test_importing_the_loaders_leaves_torch_its_threads() -> None:
    code = (
        "import torch; n = torch.get_num_threads(); import fastft.data; assert torch.get_num_threads() == n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
