"""Decoding: one stored image, the batches that are sent to a GPU, and the probe of `fastft doctor`."""

import numpy as np
import pytest
import torch

from beton_tools.jpeg.crop import decode_rgb
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.format import RAW_MODE, Beton
from fastft.augment.draw import draw_plan
from fastft.augment.plan import PLAN_DTYPE
from fastft.augment.policies import AugmentPolicy
from fastft.augment.resize import source_regions
from fastft.data import pixel_probe
from fastft.data.decode import read_at
from fastft.data.engine import Engine
from fastft.data.loader import EvalLoader
from fastft.data.slots import count_slots
from fastft.data.stage import PackedStage


def test_reading_beyond_the_end_or_from_a_closed_file_fails(indexed_beton):
    beton, target = Beton.open(indexed_beton), np.zeros(16, np.uint8)
    assert read_at(beton.descriptor, beton.file_size - 16, 16, target)
    assert target.tobytes() == indexed_beton.read_bytes()[-16:]
    assert not read_at(beton.descriptor, beton.file_size - 15, 16, target)
    assert not read_at(-1, 0, 16, target)


SIZE, BATCH = 64, 8


def draw(ids, heights, widths):
    policy = AugmentPolicy("rand-m9-mstd0.5-inc1")
    return draw_plan(policy, seed=3, epoch=1, sample_ids=ids, heights=heights, widths=widths, size=SIZE)


def packed_batches(path, order):
    """Arguments of the device's augmentation, batch by batch."""
    calls = []

    def augment(pixels, offsets, plan):
        calls.append([pixels.clone(), offsets.clone(), plan.clone()])
        return torch.zeros(len(offsets) - 1, 3, SIZE, SIZE)

    beton = BetonSet.open(path)
    stage = PackedStage(beton, SIZE, torch.device("cpu"), augment, workers=2, slots=count_slots(2))
    engine = Engine(stage, batches_ahead=2)
    labels = [labels for _, labels in engine.start(np.split(order, range(BATCH, len(order), BATCH)), draw)]
    stage.close()
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in labels), (
        "labels must not keep the packed batches"
    )
    return beton, calls, torch.cat(labels).numpy()


@pytest.mark.parametrize("kind", ["jpg", "raw", "indexed"])
def test_packed_pixels_are_the_crops_of_the_whole_images(kind, stock_beton, indexed_beton):
    order = np.random.default_rng(1).permutation(44)
    beton, calls, labels = packed_batches(indexed_beton if kind == "indexed" else stock_beton(kind), order)
    assert np.array_equal(labels, beton.labels[order])
    assert [len(offsets) - 1 for _, offsets, _ in calls] == [8, 8, 8, 8, 8, 4]
    rows = iter(order)
    for pixels, offsets, plan_bytes in calls:
        plan = plan_bytes.numpy().view(PLAN_DTYPE)
        assert len(pixels) == offsets[-1], "more than the used bytes would be copied"
        for b, (y, x, h, w) in enumerate(source_regions(plan, SIZE)):
            sample = next(rows)
            assert plan["sample"][b] == sample
            whole = whole_image(beton, sample)
            crop = pixels[offsets[b] : offsets[b + 1]].numpy().reshape(h, w, 3)
            assert np.array_equal(crop, whole[y : y + h, x : x + w])


def whole_image(beton, sample):
    if beton.modes[sample] == RAW_MODE:
        return beton.image_bytes(sample).reshape(beton.heights[sample], beton.widths[sample], 3)
    return decode_rgb(beton.image_bytes(sample))


def test_the_loaders_images_are_pillows_here():
    assert pixel_probe.probe() <= pixel_probe.TOLERANCE


def test_a_loader_that_repeats_the_first_row_is_found(monkeypatch):
    """Every row equals the first one, as with Numba 0.68 on Python 3.12."""

    class Repeats(EvalLoader):
        def __iter__(self):
            for batch in super().__iter__():
                batch.images[:] = batch.images[:, :, :1]
                yield batch

    monkeypatch.setattr(pixel_probe, "EvalLoader", Repeats)
    with pytest.raises(SystemExit, match=r"differ from Pillow's by \d+ of 255"):
        pixel_probe.main()
