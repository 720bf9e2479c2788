"""A training loader whose images change their size: the same crops, with the kernels and decoders that it has."""

import numpy as np
import pytest
import torch

from beton_tools.read.beton_set import BetonSet
from fastft.augment.draw import draw_plan
from fastft.augment.plan import PLAN_DTYPE
from fastft.augment.policies import AugmentPolicy
from fastft.augment.resize import source_regions
from fastft.data.loader import TrainLoader
from fastft.data.stage import Output, PackedStage

POLICY = AugmentPolicy("rand-m9-mstd0.5-inc1")


def loader(path, size, micro_batch=4):
    return TrainLoader(path, POLICY, Output(size), batch_size=8, micro_batch=micro_batch, seed=5, workers=2)


def images(batches):
    found = [(batch.step, batch.first_position, batch.ids.copy(), batch.images.clone()) for batch in batches]
    order = np.concatenate([ids for _, _, ids, _ in found])
    return order, torch.cat([image for *_, image in found])


@pytest.mark.parametrize(("size", "micro_batch"), [(32, 8), (64, 2)])
def test_after_a_change_the_batches_are_those_of_a_loader_of_that_size(indexed_beton, size, micro_batch):
    with loader(indexed_beton, 48) as changing, loader(indexed_beton, size, micro_batch) as fresh:
        images(changing.epoch(0))
        changing.resize(size, micro_batch)
        order, got = images(changing.epoch(1))
        wanted_order, wanted = images(fresh.epoch(1))
    assert np.array_equal(order, wanted_order)
    assert torch.equal(got, wanted)


class DeviceStub:
    """Stands for the device's augmentation: notes what it is given."""

    def __init__(self, size, calls):
        self.size, self.calls = size, calls

    def __call__(self, pixels, offsets, plan):
        self.calls.append((self.size, pixels.clone(), offsets.clone(), plan.numpy().view(PLAN_DTYPE).copy()))
        return torch.zeros(len(offsets) - 1, 3, self.size, self.size)

    def at(self, size):
        return DeviceStub(size, self.calls)


def test_the_stage_of_a_gpu_copies_the_regions_of_the_new_size(indexed_beton):
    beton, calls = BetonSet.open(indexed_beton), []

    def plans(size):
        return lambda ids, heights, widths: draw_plan(
            POLICY, seed=1, epoch=0, sample_ids=ids, heights=heights, widths=widths, size=size
        )

    stage = PackedStage(beton, 48, torch.device("cpu"), DeviceStub(48, calls), workers=1, slots=2)
    ids = np.arange(8)
    stage.run(ids, 0, plans(48))
    stage.resize(24, 8)
    images, _ = stage.run(ids, 0, plans(24))
    stage.close()
    assert images.shape == (8, 3, 24, 24)
    assert [size for size, *_ in calls] == [48, 24]
    for size, pixels, offsets, plan in calls:
        regions = source_regions(plan, size).astype(np.int64)
        assert np.array_equal(np.diff(offsets), 3 * regions[:, 2] * regions[:, 3])
        assert len(pixels) == offsets[-1]
        assert (plan["resize"] == size).all()
