import threading
from concurrent.futures import CancelledError
from threading import Event

import numpy as np
import pytest

from beton_tools.base.errors import UserError
from fastft.augment.rng import epoch_words
from fastft.data import order as order_module
from fastft.data.classes import training_shares
from fastft.data.order import BatchLayout, OrderStopped, RandomOrder, SampleOrder, Shard, draw_by_class


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    return RandomOrder(seed, epoch, count, None, Event()).between(0, count)


def test_an_epoch_shows_every_sample_once_and_epochs_and_seeds_differ():
    orders = [epoch_order(1000, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
    assert len({order.tobytes() for order in orders}) == 4


def test_the_order_of_an_epoch_never_changes():
    """Written down once: a checkpoint resumes in the order it was made with, whatever NumPy is installed."""
    assert epoch_order(10, 42, 7).tolist() == [6, 8, 7, 4, 5, 2, 9, 0, 1, 3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((100, 16, 3), "not a multiple"),
        ((100, -1, 1), "batch size is -1. Give a whole number, 1 or more"),
        ((100, 16, 0), "not a multiple"),
        ((100, 16, 8, Shard(0, 4)), "not a multiple"),
        ((10, 16, 16), "do not fill"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        BatchLayout(*arguments)


def test_a_rank_outside_the_world_is_refused():
    with pytest.raises(UserError, match="rank 2 with world size 2"):
        Shard(2, 2)


def test_starting_after_the_end_of_an_epoch_is_refused():
    with pytest.raises(UserError, match="6 steps"):
        BatchLayout(100, 16, 4).check_step(7)


# segments


@pytest.mark.parametrize(
    ("segment", "chunk"), [pytest.param(1, 5, marks=pytest.mark.slow), (10, 64), (64, 64), (400, 1000), (1000, 7)]
)
def test_an_order_in_segments_is_one_sort_of_all_samples(monkeypatch, segment, chunk):
    monkeypatch.setattr(order_module, "SEGMENT", segment)
    monkeypatch.setattr(order_module, "CHUNK", chunk)
    expected = np.argsort(epoch_words(5, 2, 1000), kind="stable")
    order = RandomOrder(5, 2, 1000, None, Event())
    parts = [order.make(number) for number in range(len(order.segments))]
    assert np.array_equal(np.concatenate(parts), expected)
    assert [order.begin(number) for number in range(len(parts) + 1)] == np.cumsum([0, *map(len, parts)]).tolist()
    assert (len(parts) == 1) == (segment == 1000) and (segment == 1 or max(map(len, parts)) <= segment)
    assert np.array_equal(order.between(333, 777), expected[333:777])


def test_words_of_samples_with_equal_words_keep_the_order_of_the_samples(monkeypatch):
    monkeypatch.setattr(order_module, "epoch_words", lambda seed, epoch, count, first=0: np.zeros(count, np.uint64))
    assert epoch_order(50, 0, 0).tolist() == list(range(50))


@pytest.mark.parametrize("segment", [7, 40, 1000])
@pytest.mark.parametrize("start_step", [0, 3, 11])
def test_the_batches_of_all_ranks_are_the_epoch_in_its_order(monkeypatch, segment, start_step):
    monkeypatch.setattr(order_module, "SEGMENT", segment)
    expected = np.argsort(epoch_words(5, 2, 100), kind="stable")[: 11 * 9].reshape(11, 3, 3)[start_step:]
    order = SampleOrder(range(100), None, 5, "random", 1)
    for rank in range(3):
        layout = BatchLayout(100, 9, 1, Shard(rank, 3))
        batches = list(order.batches(2, layout, start_step))
        assert all(len(batch) == 1 for batch in batches)
        assert np.array_equal(np.concatenate([[], *batches]), expected[:, rank].reshape(-1))
        assert layout.count_before(np.array([100]), start_step) == len(batches)
    order.close()


def test_the_next_epoch_is_made_while_the_last_batches_are_used(monkeypatch):
    order = SampleOrder(range(100), None, 5, "random", 1)
    layout = BatchLayout(100, 10, 10)
    list(order.batches(0, layout))
    (request, future) = order._requested
    assert request == (1, 0, 0) and np.array_equal(future.result(10), epoch_order(100, 5, 1))
    assert np.array_equal(np.concatenate(list(order.batches(1, layout))), epoch_order(100, 5, 1))
    order.close()
    assert not any("SampleOrder" in thread.name for thread in threading.enumerate())


def test_closing_ends_an_order_that_is_being_made(monkeypatch):
    monkeypatch.setattr(order_module, "CHUNK", 1)
    order = SampleOrder(range(10_000_000), None, 5, "random", 1)
    future = order._request(0, 0, BatchLayout(10_000_000, 10, 10), 0)
    order.close()
    with pytest.raises((OrderStopped, CancelledError)):
        future.result(10)


# unequal classes


LABELS = np.repeat([0, 2, 1], [90, 27, 3])  # label 1 has 3 images


@pytest.mark.parametrize(("sampling", "shares"), [("balanced", [1 / 3, 1 / 3, 1 / 3]), ("sqrt", [0.584, 0.107, 0.320])])
def test_sampling_draws_each_class_within_one_image_of_its_share_and_its_images_equally_often(sampling, shares):
    for epoch in range(5):
        drawn = draw_by_class(LABELS, sampling, 0, epoch)
        # repetitions have numbers of their own
        assert len(drawn) == len(set(drawn.tolist())) == 120 and drawn.min() >= 0
        times = np.bincount(drawn % 120, minlength=120)
        for label, share in enumerate(training_shares(np.bincount(LABELS), sampling)):
            assert share == pytest.approx(shares[label], abs=0.02)
            own = times[np.flatnonzero(label == LABELS)]
            assert abs(own.sum() - 120 * share) < 1 and own.max() - own.min() <= 1


def test_sampling_is_a_pure_function_that_never_changes_and_gives_every_image_its_turn():
    """The numbers are written down: a checkpoint resumes in the order it was made with."""
    assert draw_by_class(LABELS[86:93], "balanced", 42, 7).tolist() == [1, 0, 2, 4, 5, 12, 6]
    assert all(np.array_equal(draw_by_class(LABELS, "sqrt", 1, 2), draw_by_class(LABELS, "sqrt", 1, 2)) for _ in "ab")
    times = sum(np.bincount(draw_by_class(LABELS, "balanced", 3, epoch) % 120, minlength=120) for epoch in range(400))
    assert times[:90] / 400 == pytest.approx(np.full(90, 40 / 90), abs=0.1)  # 4 standard errors
