"""A plan depends on its key alone; regions have torchvision's and Pillow's geometry; descriptions agree with the values."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as tv

from beton_tools.base.errors import UserError
from fastft.augment.describe import describe_policy, describe_row
from fastft.augment.draw import draw_plan, eval_plan
from fastft.augment.plan import CHAIN_DEPTH, HFLIP, JITTER, OP_ID, PLAN_DTYPE, TRANSPOSE, VFLIP
from fastft.augment.policies import AugmentPolicy
from fastft.augment.resize import pixel_taps, reflect, source_region, source_regions

N = 3000
IDS = np.random.default_rng(0).permutation(10 * N)[:N]
HEIGHTS = np.random.default_rng(1).integers(30, 700, N)
WIDTHS = np.random.default_rng(2).integers(30, 700, N)
POLICIES = {
    "paper": AugmentPolicy("rand-m9-mstd0.5-inc1"),
    "simple crop": AugmentPolicy("3aug", crop="src", erase_prob=0.0),
    "augmix": AugmentPolicy("augmix", erase_count=4, erase_prob=1.0),
    "weighted": AugmentPolicy("rand-n5-tweights-mstd101"),
}


def plan_of(policy_name: str, rows: np.ndarray, *, seed: int = 1, epoch: int = 2, size: int = 224) -> np.ndarray:
    images = {"sample_ids": IDS[rows], "heights": HEIGHTS[rows], "widths": WIDTHS[rows]}
    return draw_plan(POLICIES[policy_name], seed=seed, epoch=epoch, size=size, **images)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_plan_does_not_depend_on_batch_size_order_or_other_samples(policy):
    everything = np.arange(N)
    whole = plan_of(policy, everything)
    order = np.random.default_rng(3).permutation(N)
    assert (plan_of(policy, order) == whole[order]).all()
    for batch in (1, 7, 256):
        parts = [plan_of(policy, everything[i : i + batch]) for i in range(0, 600, batch)]
        assert (np.concatenate(parts)[:600] == whole[:600]).all()
    for rank in range(8):
        assert (plan_of(policy, everything[rank::8]) == whole[rank::8]).all()


def test_a_seed_of_64_bits_and_any_sample_id_count_in_full():
    policy = AugmentPolicy("none")
    keys = {
        int(draw_plan(policy, seed=seed, epoch=epoch, sample_ids=[sample], heights=[9], widths=[9], size=4)[
            "noise_key"
        ][0])
        for seed in (0, 1, 1 << 32, (1 << 64) - 1)
        for epoch in (0, 1)
        for sample in (0, 1, 1 << 32, 1 << 40)
    }  # fmt: skip
    assert len(keys) == 4 * 2 * 4


# -- evaluation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "crop_pct"), [(224, 1.0), (224, 0.875), (336, 1.0), (384, 0.95), (7, 0.9)])
def test_evaluation_resizes_and_crops_as_torchvision(size, crop_pct):
    heights, widths = HEIGHTS[:60], WIDTHS[:60]
    plan = eval_plan(IDS[:60], heights, widths, size, crop_pct)
    resize, crop = tv.Resize(int(size / crop_pct)), tv.CenterCrop(size)
    for row, height, width in zip(plan, heights, widths, strict=True):
        resized = resize(Image.new("L", (width, height)))
        assert tuple(row["resize"]) == (resized.height, resized.width)
        place = torch.arange(resized.height * resized.width).reshape(1, resized.height, resized.width)
        assert tuple(row["window"]) == divmod(int(crop(place)[0, 0, 0]), resized.width)
    assert (plan["crop"] == np.column_stack([0 * heights, 0 * widths, heights, widths])).all()
    assert not plan["op"].any() and not plan["flip"].any() and not plan["erase"].any()


def test_the_simple_crop_takes_every_window_of_deit_iii():
    """Short side to 20, padded by 4 on each side: 9 places across it, and long side - 20 + 9 along it."""
    n = 20_000
    plan = draw_plan(AugmentPolicy("none", crop="src"), seed=0, epoch=0, sample_ids=np.arange(n),
                     heights=np.full(n, 40), widths=np.full(n, 50), size=20)  # fmt: skip
    assert (plan["resize"] == (20, 25)).all()
    rows, columns = np.unique(plan["window"][:, 0]), np.unique(plan["window"][:, 1])
    assert rows.tolist() == list(range(-4, 5)) and columns.tolist() == list(range(-4, 10))


# -- regions -------------------------------------------------------------------------------------------------


def touched_by_brute_force(row: np.void, size: int) -> tuple[int, int, int, int]:
    """Bounding box of all filter taps of all output pixels."""
    box = []
    weights = np.zeros(4096, np.int32)
    for axis in range(2):
        crop, resized, window = (int(row[f][i]) for f, i in (("crop", 2 + axis), ("resize", axis), ("window", axis)))
        spans = [
            pixel_taps(reflect(window + i, resized), crop, resized, bool(row["bicubic"]), weights, 0)
            for i in range(size)
        ]
        begin = min(first for first, _ in spans)
        box.append((int(row["crop"][axis]) + begin, max(first + count for first, count in spans) - begin))
    return box[0][0], box[1][0], box[0][1], box[1][1]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300), st.integers(1, 300), st.integers(5, 60), st.sampled_from(["rrc", "src", "eval"]), st.booleans()
)
def test_the_source_region_is_exactly_what_the_filter_taps_touch(height, width, size, kind, bicubic):
    interpolation = "bicubic" if bicubic else "bilinear"
    if kind == "eval":
        plan = eval_plan([0], [height], [width], size, 0.875, interpolation)
    else:
        policy = AugmentPolicy("none", crop=kind, interpolation=interpolation)
        plan = draw_plan(policy, seed=height, epoch=width, sample_ids=[5], heights=[height], widths=[width], size=size)
    region = tuple(int(v) for v in source_region(plan[0], size))
    assert region == touched_by_brute_force(plan[0], size)
    assert tuple(source_regions(plan, size)[0]) == region
    y, x, h, w = region
    assert min(y, x) >= 0 and y + h <= height and x + w <= width


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(([1], [2, 3], [4], 8), "equal length"), (([1], [0], [4], 8), "no pixels"), (([1], [4], [4], 0), "no pixels")],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        eval_plan(*arguments)


def test_a_crop_share_above_one_or_an_output_smaller_than_its_padding_is_refused():
    with pytest.raises(UserError, match="crop_pct"):
        eval_plan([1], [4], [4], 8, 1.2)
    with pytest.raises(UserError, match="src"):
        policy = AugmentPolicy("none", crop="src")
        draw_plan(policy, seed=0, epoch=0, sample_ids=[1], heights=[9], widths=[9], size=4)


TURNED = {"vflip": 0.5, "quarter_turns": 0.5, "color_jitter": 0.4, "color_jitter_prob": 0.5}


def test_an_augmix_description_lists_chains_and_weights():
    row = np.zeros(1, PLAN_DTYPE)[0]
    row["chain_weights"][:2], row["blend"] = (0.25, 0.75), 0.4
    row["op"][0], row["op"][CHAIN_DEPTH] = OP_ID["Equalize"], OP_ID["AutoContrast"]
    row["op"][CHAIN_DEPTH + 1], row["argument"][CHAIN_DEPTH + 1] = OP_ID["Posterize"], 2
    mixture = ["mixture 40%", "25% Equalize", "75% AutoContrast then Posterize 2 bits"]
    assert describe_row(row) == mixture
    row["op"][JITTER], row["argument"][JITTER], row["flip"] = OP_ID["Contrast"], 1.3, HFLIP | VFLIP | TRANSPOSE
    assert describe_row(row) == ["flip", "vertical flip", "transpose", *mixture, "Contrast x1.30"]


def test_a_policy_description_lists_turns_and_jitter():
    """The other steps are in tests/golden."""
    assert describe_policy(AugmentPolicy("none", erase_prob=0.0, hflip=0.0, **TURNED), 224)[1:] == [
        "vertical flip, probability 0.5",
        "rotation by 0, 90, 180 or 270 degrees, probability 0.5",
        "colour jitter, probability 0.5: brightness, contrast and saturation times 1 ± 0.4, in random order",
    ]
