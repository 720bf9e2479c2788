import numpy as np
import pytest

from beton_tools.base.errors import UserError
from fastft.data.classes import training_shares
from fastft.data.order import BatchLayout, Shard, draw_by_class, epoch_order


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
        BatchLayout(100, 16, 4).rank_order(epoch_order(100, 0, 0), 7)


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
