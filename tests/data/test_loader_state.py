"""Loaders as torch's users know them: `len`, one epoch per iteration, `state_dict` in the middle of an epoch, tuples."""

import pytest
import torch

from beton_tools.base.errors import UserError
from fastft import AsTuples, EvalLoader, Shard, TrainLoader
from tests.data.test_loader import BATCH, SIZE, collect


def loader(path, **options):
    return TrainLoader(path, "3aug", SIZE, **({"batch_size": BATCH, "micro_batch": 4, "workers": 1} | options))


@pytest.fixture(scope="module")
def epochs(indexed_beton):
    """The images of the first three epochs."""
    with loader(indexed_beton) as whole:
        return [collect(whole) for _ in range(3)]


def test_a_loader_has_a_length_and_every_iteration_is_the_next_epoch(indexed_beton, epochs):
    with loader(indexed_beton) as whole:
        assert len(whole) == 10 and len(list(whole)) == 10
        assert collect(whole.epoch(1)) == epochs[1]
        assert collect(whole) == epochs[1]
    with EvalLoader(indexed_beton, "none", SIZE, batch_size=BATCH) as evaluation:
        assert len(evaluation) == 6 == len(list(evaluation))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("delivered", [0, 5, 10, 13])
def test_a_state_continues_with_the_next_micro_batch(indexed_beton, epochs, delivered):
    with loader(indexed_beton) as first:
        batches = (batch for _ in range(2) for batch in first)
        for _ in range(delivered):
            next(batches)
        state = first.state_dict()
    with loader(indexed_beton) as second:
        second.load_state_dict(state)
        assert second.state_dict() == state
        epoch, done = divmod(delivered, 10)
        rest = collect(second)
        assert len(rest) == (10 - done) * 4
        assert rest.items() <= epochs[epoch].items()
        assert collect(second) == epochs[epoch + 1]


def test_a_state_between_two_steps_loads_at_another_world_size(indexed_beton, epochs):
    with loader(indexed_beton) as first:
        batches = iter(first)
        for _ in range(6):
            next(batches)
        state = first.state_dict()
    rest = {}
    for rank in range(2):
        with loader(indexed_beton, shard=Shard(rank, 2)) as part:
            part.load_state_dict(state)
            rest |= collect(part)
    assert rest == {key: value for key, value in epochs[0].items() if key[0] >= 3}


def test_a_state_that_does_not_fit_is_refused(indexed_beton):
    with loader(indexed_beton) as first:
        next(iter(first))
        state = first.state_dict()
    for options, name in (
        ({"seed": 1}, "seed"),
        ({"batch_size": 4}, "batch_size"),
        ({"micro_batch": 8}, "micro_batch"),
    ):
        with loader(indexed_beton, **options) as other, pytest.raises(UserError, match=f"was saved with {name}"):
            other.load_state_dict(state)


def test_an_iteration_after_a_break_is_the_next_epoch_and_set_epoch_chooses_one(indexed_beton, epochs):
    with loader(indexed_beton) as broken:
        next(iter(broken))
        assert collect(broken) == epochs[1]
        broken.set_epoch(0)
        assert collect(broken) == epochs[0]


def test_tuples_are_images_and_labels_and_copies_stay_valid(indexed_beton):
    with loader(indexed_beton) as whole:
        want = [(batch.images.clone(), batch.labels.clone()) for batch in whole.epoch(0)]
        tuples = AsTuples(whole, copy=True)
        assert len(tuples) == 10
        for (images, labels), found in zip(want, list(tuples), strict=True):
            assert type(found) is tuple and torch.equal(found[0], images) and torch.equal(found[1], labels)
        whole.set_epoch(0)
        for (images, _), found in zip(want, AsTuples(whole), strict=True):
            assert torch.equal(found[0], images)
