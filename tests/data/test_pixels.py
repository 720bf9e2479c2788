"""The loaders' images against two independent ways to the same images."""

import io

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from beton_tools.read.format import Beton
from fastft.augment.cpu import CpuAugment
from fastft.augment.draw import draw_plan
from fastft.augment.policies import AugmentPolicy
from fastft.augment.resize import source_regions
from fastft.data.loader import EvalLoader, TrainLoader
from fastft.data.stage import Output
from tests.augment.single_ops import needs_pillow_13

SIZE = 56
COLOURS = {"mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28)}


def pillow_image(beton, sample):
    if beton.modes[sample]:
        pixels = beton.image_bytes(sample).reshape(beton.heights[sample], beton.widths[sample], 3)
        return Image.fromarray(pixels)
    return Image.open(io.BytesIO(beton.read_bytes(sample))).convert("RGB")


@needs_pillow_13
@pytest.mark.parametrize("kind", ["jpg", "raw", "indexed"])
@pytest.mark.parametrize(
    ("crop_pct", "mode", "interpolation"),
    [(1.0, "center", "bicubic"), (0.875, "center", "bicubic"), (0.9, "squash", "bilinear"), (1.0, "squash", "bicubic")],
)
def test_evaluation_images_are_timms(kind, crop_pct, mode, interpolation, stock_beton, indexed_beton):
    path = indexed_beton if kind == "indexed" else stock_beton(kind)
    beton = Beton.open(path)
    transform = timm.data.create_transform(
        SIZE, is_training=False, interpolation=interpolation, crop_pct=crop_pct, crop_mode=mode, **COLOURS
    )
    one_level = 1.01 / 255 / min(COLOURS["std"])
    resize = "squash" if mode == "squash" else "shortest"
    policy = AugmentPolicy("none", crop_pct=crop_pct, eval_resize=resize, eval_interpolation=interpolation, **COLOURS)
    with EvalLoader(path, policy, Output(SIZE), batch_size=16) as loader:
        for batch in loader:
            for image, sample in zip(batch.images, batch.ids, strict=True):
                assert (image - transform(pillow_image(beton, sample))).abs().max() <= one_level


@pytest.mark.parametrize("augment", ["rand-m9-mstd0.5-inc1", "augmix-m3-w3", "3aug"])
def test_training_images_are_the_plans_carried_out_on_whole_images(indexed_beton, augment):
    policy = AugmentPolicy(augment, **COLOURS)
    beton = Beton.open(indexed_beton)
    with TrainLoader(indexed_beton, policy, Output(SIZE), seed=1, batch_size=22) as loader:
        for batch in loader.epoch(4):
            assert torch.equal(batch.images, carried_out(policy, beton, batch.ids, epoch=4))


def carried_out(policy, beton, ids, epoch):
    sizes = {"sample_ids": ids, "heights": beton.heights[ids], "widths": beton.widths[ids]}
    plan = draw_plan(policy, seed=1, epoch=epoch, size=SIZE, **sizes)
    crops = [
        np.asarray(pillow_image(beton, sample))[y : y + h, x : x + w].reshape(-1)
        for sample, (y, x, h, w) in zip(ids, source_regions(plan, SIZE), strict=True)
    ]
    ends = np.cumsum([len(crop) for crop in crops])
    images = CpuAugment(policy, SIZE)(np.concatenate(crops), ends - [len(c) for c in crops], plan)
    return torch.from_numpy(images).permute(0, 3, 1, 2)
