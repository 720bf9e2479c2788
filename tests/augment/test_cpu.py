"""The CPU back end carries out a plan exactly as Pillow, timm and torchvision would, however it is called."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from beton_tools.base.errors import UserError
from fastft.augment.cpu import CpuAugment, augment_image
from fastft.augment.draw import draw_plan, eval_plan
from fastft.augment.plan import CHAIN_DEPTH, HFLIP, JITTER, OPS, TRANSPOSE, VFLIP
from fastft.augment.policies import AugmentPolicy
from fastft.augment.resize import OK, REGION_TOO_SMALL, SCRATCH_TOO_SMALL, source_regions
from tests.augment.single_ops import apply_argument, needs_pillow_13, pillow_resized_crop

SIZE = 64
TURNED = {"vflip": 0.5, "quarter_turns": 0.8, "color_jitter": 0.4, "color_jitter_prob": 0.7}
POLICIES = (
    ("rand-m9-mstd0.5-inc1", {}), ("rand-m9-n4-p1", TURNED), ("3aug", TURNED), ("augmix", TURNED), ("augmix-m5-w4-d2", {}),
    ("none", TURNED),
)  # fmt: skip

TRANSPOSED = {
    HFLIP: Image.Transpose.FLIP_LEFT_RIGHT, VFLIP: Image.Transpose.FLIP_TOP_BOTTOM, TRANSPOSE: Image.Transpose.TRANSPOSE
}  # fmt: skip


class Batch:
    """Photographs cut down to what a plan touches and packed, as the loader's decoder leaves them."""

    def __init__(self, photographs: dict[str, np.ndarray], policy: AugmentPolicy, count: int = 24) -> None:
        photos = list(photographs.values())
        self.images = [photos[i % len(photos)][:200, :230] for i in range(count)]
        heights, widths = ([image.shape[k] for image in self.images] for k in (0, 1))
        images = {"sample_ids": np.arange(count), "heights": heights, "widths": widths}
        self.plan = draw_plan(policy, seed=3, epoch=1, size=SIZE, **images)
        self.regions = source_regions(self.plan, SIZE)
        parts = [
            im[y : y + h, x : x + w].reshape(-1) for im, (y, x, h, w) in zip(self.images, self.regions, strict=True)
        ]
        self.packed = np.concatenate(parts)
        self.offsets = np.cumsum([0, *(len(part) for part in parts)])[:-1]


def with_pillow(image: np.ndarray, row: np.void) -> np.ndarray:
    """Resize and flip by Pillow, the ops in turn (equal to Pillow's: test_ops), AugMix by timm's rule."""
    current = pillow_resized_crop(image, tuple(row["crop"]), tuple(row["resize"]), bool(row["bicubic"]))
    for bit in (HFLIP, VFLIP, TRANSPOSE):
        if row["flip"] & bit:
            current = np.array(Image.fromarray(current).transpose(TRANSPOSED[bit]))
    if not row["chain_weights"].any():
        return run_ops(current, row, 0, len(row["op"]))
    mixed = np.zeros(current.shape, np.float32)
    for chain, weight in enumerate(row["chain_weights"]):
        chained = run_ops(current, row, chain * CHAIN_DEPTH, (chain + 1) * CHAIN_DEPTH)
        mixed += weight * np.asarray(chained, np.float32)
    mixture = Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))
    blended = np.array(Image.blend(Image.fromarray(current), mixture, float(row["blend"])))
    return blended if row["chain_weights"][-1] else run_ops(blended, row, JITTER, len(row["op"]))


def run_ops(image: np.ndarray, row: np.void, begin: int, end: int) -> np.ndarray:
    for op, argument in zip(row["op"][begin:end], row["argument"][begin:end], strict=True):
        image = apply_argument(OPS[op].name, image, argument)
    return image


@needs_pillow_13
@pytest.mark.parametrize(("text", "options"), POLICIES)
def test_every_plan_gives_the_images_of_pillow_and_torchvision(text, options, photographs):
    policy = AugmentPolicy(text, erase_prob=0.0, **options)
    batch = Batch(photographs, policy)
    out = CpuAugment(policy, SIZE)(batch.packed, batch.offsets, batch.plan)
    assert out.dtype == np.float32 and out.shape == (24, SIZE, SIZE, 3)
    for image, row, ours in zip(batch.images, batch.plan, out, strict=True):
        tensor = functional.to_tensor(with_pillow(image, row))
        theirs = functional.normalize(tensor, policy.mean, policy.std)
        np.testing.assert_allclose(ours, theirs.permute(1, 2, 0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "kind"), [("float16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_half_outputs_are_the_float32_output_rounded(dtype, kind, photographs):
    policy = AugmentPolicy(erase_prob=1.0, erase_count=3)
    batch = Batch(photographs, policy)
    exact = CpuAugment(policy, SIZE)(batch.packed, batch.offsets, batch.plan)
    half = CpuAugment(policy, SIZE, dtype)(batch.packed, batch.offsets, batch.plan)
    assert half.dtype == np.uint16
    assert torch.equal(torch.from_numpy(half.view(np.int16)), torch.from_numpy(exact).to(kind).view(torch.int16))


def test_the_result_does_not_depend_on_the_rest_of_the_batch(photographs):
    """Also from a whole decoded image, its rows further apart, and after other images in the same scratch."""
    policy = AugmentPolicy(erase_prob=0.5)
    batch, augment = Batch(photographs, policy), CpuAugment(policy, SIZE)
    together = augment(batch.packed, batch.offsets, batch.plan)
    scratch, out = augment.new_scratch(1, 200, 230)[0], augment.new_output(1)[0]
    for b in reversed(range(len(batch.plan))):
        image, region = np.ascontiguousarray(batch.images[b]), tuple(batch.regions[b].tolist())
        stride = image.shape[1] * 3
        pixels = image.reshape(-1)[region[0] * stride + region[1] * 3 :]
        assert augment_image(pixels, stride, region, batch.plan[b], augment.finish, scratch, out.view(np.uint8)) == OK
        np.testing.assert_array_equal(out, together[b])


def test_evaluation_equals_torchvisions_resize_and_centre_crop(photographs):
    policy = AugmentPolicy("none")
    for image in photographs.values():
        height, width = image.shape[:2]
        plan = eval_plan([0], [height], [width], SIZE, crop_pct=0.875)
        y, x, h, w = source_regions(plan, SIZE)[0]
        packed = np.ascontiguousarray(image[y : y + h, x : x + w]).reshape(-1)
        ours = CpuAugment(policy, SIZE)(packed, np.zeros(1, np.int64), plan)[0]
        resized = functional.resize(Image.fromarray(image), 73, functional.InterpolationMode.BICUBIC)
        tensor = functional.to_tensor(functional.center_crop(resized, [SIZE, SIZE]))
        theirs = functional.normalize(tensor, policy.mean, policy.std).permute(1, 2, 0)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_a_buffer_that_lacks_pixels_is_refused_and_names_the_sample(photographs):
    batch, augment = Batch(photographs, AugmentPolicy()), CpuAugment(AugmentPolicy(), SIZE)
    with pytest.raises(UserError, match="sample 23"):
        augment(batch.packed[:-1], batch.offsets, batch.plan)
    with pytest.raises(UserError, match="sample 0"):
        augment(batch.packed, batch.offsets - 1, batch.plan)
    scratch, out = augment.new_scratch(1, 200, 230)[0], augment.new_output(1)[0].view(np.uint8)
    row, region = batch.plan[0], tuple(batch.regions[0].tolist())
    part, stride = batch.packed[: batch.offsets[1]], region[3] * 3
    assert augment_image(part, stride, region, row, augment.finish, scratch, out) == OK
    assert augment_image(part[:-1], stride, region, row, augment.finish, scratch, out) == REGION_TOO_SMALL
    for room in (0, 1000, 7 * SIZE * SIZE * 3 + 64, len(scratch) - 100_000):
        status = augment_image(part, stride, region, row, augment.finish, scratch[:room], out)
        assert status == SCRATCH_TOO_SMALL
    with pytest.raises(UserError, match="float64"):
        CpuAugment(AugmentPolicy(), SIZE, "float64")
