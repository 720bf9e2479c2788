"""The hold-out: AutoGluon's share, every class, and no unit on both sides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastft.data.units import join_units
from fastft.photos.holdout import hold_out, holdout_share


@pytest.mark.parametrize(
    ("images", "share"),
    [(100, 0.2), (1_000, 0.2), (2_500, 0.2), (4_000, 0.125), (9_000, 0.1), (50_000, 0.05), (10**6, 0.01)],
)
def test_the_share_is_autogluons(images, share):
    assert holdout_share(images) == pytest.approx(share)


def test_every_class_is_held_out_in_its_share():
    labels = np.repeat(np.arange(4), [400, 300, 200, 100])
    held = hold_out(labels, np.arange(1000))
    assert np.bincount(labels[held]).tolist() == [80, 60, 40, 20]


def test_a_class_of_one_unit_gives_its_share_to_others():
    labels, units = np.repeat([0, 1], 4), np.array([0, 0, 0, 0, 1, 2, 3, 4])
    assert np.flatnonzero(hold_out(labels, units)).tolist() in ([4], [5], [6], [7])


def test_at_most_a_fifth_is_held_out_even_with_many_classes():
    labels = np.repeat(np.arange(50), 2)
    assert 0 < hold_out(labels, np.arange(100)).sum() <= 20


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 200), min_size=2, max_size=20))
def test_a_rare_class_gives_one_image(counts):
    counts = [3, 4, *counts]
    labels = np.repeat(np.arange(len(counts)), counts)
    held = np.bincount(labels[hold_out(labels, np.arange(len(labels)))], minlength=len(counts))
    assert held[:2].max() <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), min_size=4, max_size=120))
def test_no_unit_is_on_both_sides_and_every_class_keeps_training_images(rows):
    labels, units = np.array(rows).T
    held = hold_out(labels, units)
    for unit in np.unique(units):
        assert len(set(held[units == unit].tolist())) == 1
    for label in np.unique(labels):
        assert not held[labels == label].all()


def test_units_join_images_that_share_a_group_or_their_bytes():
    groups, contents = np.array([0, 0, 1, 2, 3]), np.array([5, 6, 6, 7, 8])
    units = join_units(groups, contents)
    assert len(set(units[:3].tolist())) == 1 and len(set(units.tolist())) == 3


@pytest.mark.parametrize(("small", "large"), [(300, 700), (250, 750), (400, 600), (499, 501)])
def test_of_two_groups_the_smaller_is_held_out(small, large):
    units = np.repeat([0, 1], [large, small])
    held = hold_out(np.arange(small + large) % 2, units)
    assert held.sum() == small and held[-small:].all()
