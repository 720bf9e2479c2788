"""`data.order=blocks`: the order is a pure function of (seed, epoch), each page is read once, and in its block."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.parts import Part
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.augment.rng import epoch_words
from fastft.data import order as order_module
from fastft.data.order import BLOCKS_IN_MEMORY, MIB, BatchLayout, BlockOrder, Pages, SampleOrder, Shard
from tests.data.test_loader import collect, train_loader

PAGE = 1 << 16


@pytest.fixture(scope="module")
def betons(indexed_beton: Path, tmp_path_factory: pytest.TempPathFactory) -> BetonSet:
    """The photographs in two files with many small pages."""
    out = tmp_path_factory.mktemp("pages") / "train.beton"
    for number in (1, 2):
        options = WriteOptions(workers=0, page_size=PAGE, part=Part(number, 2))
        convert_folder(indexed_beton.parent / "images", out, options)
    return BetonSet.open(str(out.parent / "*.beton"))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 4 pages instead of MiB, whose number the other tests give."""
    monkeypatch.setattr(order_module, "MIB", 4 * PAGE)


def test_the_page_of_a_sample_holds_its_bytes(betons):
    pages = Pages.of(betons)
    assert len(pages) == sum(beton.num_pages for beton in betons.files) > 8
    spans = pages.spans(np.arange(len(pages)))
    for sample in range(len(betons)):
        span, (beton, _) = spans[pages.of_samples(np.array([sample]))[0]], betons.locate(sample)
        begin = int(betons.pointers[sample])
        assert span.descriptor == beton.descriptor
        assert span.offset <= begin and begin + int(betons.sizes[sample]) <= span.offset + span.num_bytes


def block_order(pages: Pages, count: int, seed: int, epoch: int, block_mib: int) -> BlockOrder:
    return BlockOrder(seed, epoch, count, None, threading.Event(), pages, block_mib)


def test_an_epoch_has_every_sample_once_and_the_samples_of_a_block_together(betons, small_blocks):
    pages, samples = Pages.of(betons), np.arange(len(betons))
    for epoch in range(3):
        made = block_order(pages, len(betons), seed=5, epoch=epoch, block_mib=1)
        order = made.between(0, len(betons))
        assert np.array_equal(np.sort(order), samples)
        assert (np.diff(made.block_of_page[pages.of_samples(order)]) >= 0).all()
        used = np.bincount(made.block_of_page)
        assert (used[:-1] == 4).all() and 1 <= used[-1] <= 4
        assert not np.array_equal(order, samples)


@pytest.mark.parametrize("segment", [1, 7, 16, 1000])
def test_an_order_by_blocks_in_segments_is_one_sort_of_all_samples(betons, small_blocks, monkeypatch, segment):
    monkeypatch.setattr(order_module, "SEGMENT", segment)
    monkeypatch.setattr(order_module, "CHUNK", 5)
    pages, count = Pages.of(betons), len(betons)
    made = block_order(pages, count, 3, 1, 1)
    blocks = made.block_of_page[pages.of_samples(np.arange(count))].astype(np.uint64)
    keys = (blocks << np.uint64(40)) | (epoch_words(3, 1, count) >> np.uint64(24))
    expected = np.argsort(keys, kind="stable")
    assert np.array_equal(np.concatenate([made.make(k) for k in range(len(made.segments))]), expected)
    assert (len(made.segments) == 1) == (segment == 1000)
    assert np.array_equal(made.between(3, count - 2), expected[3:-2])


def test_the_order_by_blocks_never_changes():
    """Written down once, as for random order; 12 samples in 6 pages of two files, three pages a block."""

    class Two:
        page_size, num_pages, data_start = MIB, 3, 0
        descriptor = 0

    class Files:
        files, starts = (Two(), Two()), np.array([0, 6, 12])
        pointers = np.array(2 * [0, 5, MIB, MIB + 7, 2 * MIB, 2 * MIB + 9])

        def files_of(self, ids: np.ndarray) -> np.ndarray:
            return ids // 6

        def __len__(self) -> int:
            return 12

    pages = Pages.of(Files())  # type: ignore[arg-type]
    assert pages.of_samples(np.arange(12)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert block_order(pages, 12, 42, 7, 3).make(0).tolist() == [11, 10, 4, 5, 0, 1, 6, 8, 7, 2, 9, 3]


@pytest.mark.parametrize("delivered", [0, 5, 13])
def test_a_loader_resumes_bit_for_bit_and_at_another_world_size(betons, small_blocks, delivered):
    with train_loader(betons, order="blocks", block_mib=1) as first:
        epochs = [collect(first) for _ in range(2)]
        first.set_epoch(0)
        batches = (batch for _ in range(2) for batch in first)
        for _ in range(delivered):
            next(batches)
        state = first.state_dict()
    with train_loader(betons, order="blocks", block_mib=1, workers=1) as second:
        second.load_state_dict(state)
        epoch, done = divmod(delivered, len(second))
        rest = collect(second)
        assert len(rest) == (len(second) - done) * 4 and rest.items() <= epochs[epoch].items()
    together = {}
    for rank in range(2):
        with train_loader(betons, order="blocks", block_mib=1, rank=rank, world_size=2) as part:
            together |= collect(part.epoch(1))
    assert together == epochs[1]


def test_a_state_of_another_order_is_refused(betons):
    with train_loader(betons, order="blocks", block_mib=1) as first:
        state = first.state_dict()
    for options in ({"order": "random"}, {"order": "blocks", "block_mib": 2}):
        with train_loader(betons, **options) as other, pytest.raises(UserError, match="saved with order"):
            other.load_state_dict(state)


# reading ahead


def test_each_block_is_requested_before_it_begins_and_released_after_its_successor(betons, small_blocks, monkeypatch):
    calls: list[tuple[str, int, int]] = []
    names = {os.POSIX_FADV_WILLNEED: "request", os.POSIX_FADV_DONTNEED: "release"}

    def advise(descriptor: int, offset: int, num_bytes: int, advice: int) -> None:
        assert num_bytes == PAGE
        calls.append((names[advice], descriptor, offset))

    order = SampleOrder(betons, None, 0, "blocks", 1)
    made = order.of_epoch(0)
    assert isinstance(made, BlockOrder)
    samples, blocks = made.between(0, len(betons)), made.block_of_page
    monkeypatch.setattr(order_module, "memory_bytes", lambda: (1, 1))
    ahead = order.read_ahead(0, BatchLayout(len(betons), 1, 1))
    monkeypatch.setattr(os, "posix_fadvise", advise)
    for position in range(len(samples)):
        ahead.advance(1)
        ahead._thread.submit(lambda: None).result()  # what was submitted before is done
        block = int(blocks[made.pages.of_samples(samples[position : position + 1])[0]])
        requested = {call[1:] for call in calls if call[0] == "request"}
        wanted = made.pages.spans(np.flatnonzero(blocks <= min(block + 1, blocks.max())))
        assert requested == {span[:2] for span in wanted}
        released = {call[1:] for call in calls if call[0] == "release"}
        kept = np.flatnonzero(blocks <= min(block + 1, blocks.max()) - BLOCKS_IN_MEMORY)
        assert released == {span[:2] for span in made.pages.spans(kept)}
    ahead.close()
    order.close()
    assert len(calls) == len(set(calls))


@pytest.mark.parametrize("start_step", [0, 2])
def test_each_rank_reads_ahead_where_its_samples_of_a_block_begin(betons, small_blocks, start_step):
    order = SampleOrder(betons, None, 0, "blocks", 1)
    made = order.of_epoch(0)
    assert isinstance(made, BlockOrder)
    for rank in range(3):
        layout = BatchLayout(len(betons), 9, 3, Shard(rank, 3))
        mine = np.concatenate(list(order.batches(0, layout, start_step)))
        blocks = made.block_of_page[made.pages.of_samples(mine)]
        begins = np.append(0, np.flatnonzero(np.diff(blocks)) + 1)
        ahead = order.read_ahead(0, layout, start_step)
        assert ahead.begins.tolist() == begins.tolist() and ahead.blocks == blocks[begins].tolist()
        ahead.close()
    order.close()


def test_a_pass_that_is_abandoned_leaves_no_thread(betons):
    with train_loader(betons, order="blocks") as loader:
        batches = loader.epoch(0)
        next(batches)
        assert any("ReadAhead" in thread.name for thread in threading.enumerate())
        batches.close()
        assert not any("ReadAhead" in thread.name for thread in threading.enumerate())


# notes


def test_files_that_do_not_fit_the_page_cache_are_noted(betons, monkeypatch, caplog):
    with train_loader(betons) as loader:
        assert loader.notes == []
    monkeypatch.setattr(order_module, "memory_bytes", lambda: (1 << 40, betons.file_size))
    with train_loader(betons) as loader:
        (note,) = loader.notes
    assert "do not fit the page cache" in note and "data.order=blocks" in note
    assert [(record.name, record.getMessage()) for record in caplog.records] == [("fastft.data", note)]
    with train_loader(betons, order="blocks", block_mib=64) as loader:
        assert "nor do 3 blocks of 64 MiB" in loader.notes[0]
    caplog.clear()
    with train_loader(betons, rank=1, world_size=2) as loader:
        assert loader.notes and not caplog.records
