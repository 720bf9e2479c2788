"""Plans have timm's distributions: two-sample tests of 40,000 plans against timm's own classes at work.

timm's transforms run with the step that touches pixels replaced by a recorder, so what is compared is what
timm would have done. Seeds are fixed on both sides: a test that passes once passes always.
"""

import random
from collections.abc import Callable
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from timm.data.auto_augment import augment_and_mix_transform, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import ColorJitter

from fastft.augment.draw import QUARTER_TURNS, draw_plan
from fastft.augment.plan import CHAIN_DEPTH, HFLIP, JITTER, OP_ID, OPS, VFLIP
from fastft.augment.policies import AugmentPolicy
from tests.augment.single_ops import level_argument

N = 40_000
SIZE = 224
LEAST_P = 1e-4
HPARAMS = {"translate_const": int(0.45 * SIZE), "img_mean": (123, 117, 104)}


def plans(augment: str, n: int = N, height: int = 375, width: int = 500, **options: Any) -> np.ndarray:
    images = {"sample_ids": np.arange(n), "heights": np.full(n, height), "widths": np.full(n, width)}
    return draw_plan(AugmentPolicy(augment, **options), seed=17, epoch=3, size=SIZE, **images)


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(5)
    np.random.seed(5)


def same_counts(ours: np.ndarray, theirs: np.ndarray) -> float:
    """p of "both come from one discrete distribution"; values with few counts are pooled."""
    values = np.unique(np.concatenate([ours, theirs]))
    table = np.array([[(sample == v).sum() for v in values] for sample in (ours, theirs)])
    rare = table.sum(axis=0) < 20
    table = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)])
    table = table[:, table.sum(axis=0) > 0]
    return float(stats.chi2_contingency(table).pvalue) if table.shape[1] > 1 else 1.0


def same_values(ours: np.ndarray, theirs: np.ndarray) -> float:
    """p of "both come from one distribution": counts for few distinct values, else Kolmogorov-Smirnov."""
    if len(np.unique(theirs)) < 50:
        return same_counts(ours, theirs)
    return float(stats.ks_2samp(ours, theirs).pvalue)


# -- RandAugment and AugMix ----------------------------------------------------------------------------------


def recorded(transform: Any) -> tuple[Any, list[tuple[str, float]]]:
    """timm's transform with every op replaced by one that notes (name, argument) and leaves the image."""
    calls: list[tuple[str, float]] = []

    def note(name: str, image: Any, *arguments: float, **_: Any) -> Any:
        calls.append((name, arguments[0] if arguments else 0.0))
        return image

    for op in transform.ops:
        op.aug_fn = partial(note, op.name)
    return transform, calls


def to_plan_op(name: str, argument: float) -> tuple[int, float]:
    """(op id, argument) that a plan holds for timm's op and argument."""
    op, _ = level_argument(name, 0, height=1, width=1)
    if name.endswith("Rel"):
        argument *= SIZE
    elif name == "Desaturate":
        argument = 1.0 - argument
    return op, max(0.0, argument) if name == "PosterizeIncreasing" else argument


def timm_calls(text: str, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Op ids and arguments of n images in order, and how many ops each image got."""
    transform, calls = recorded(rand_augment_transform(text, dict(HPARAMS)))
    counts = np.empty(n, np.int64)
    for i in range(n):
        before = len(calls)
        transform(None)
        counts[i] = len(calls) - before
    terms = [to_plan_op(*call) for call in calls]
    return np.array([op for op, _ in terms]), np.array([a for _, a in terms]), counts


def assert_same_ops(ours: np.ndarray, op: np.ndarray, argument: np.ndarray) -> None:
    """Frequencies of the ops, and the distribution of the argument of each (signs included)."""
    applied = ours["op"] > 0
    our_op, our_argument = ours["op"][applied], ours["argument"][applied]
    assert same_counts(our_op, op) > LEAST_P
    for which in np.unique(op):
        p = same_values(our_argument[our_op == which], argument[op == which])
        assert p > LEAST_P, f"{OPS[which].name}: p = {p:.2g}"


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("rand-m9-mstd0.5-inc1", N),
        ("rand-m10-n3-p0.7-mstd1", N // 10),
        ("rand-m7-mstd101-inc1-mmax5", N // 10),
        ("rand-m9-n3-tweights", N // 10),
        ("rand-m6-n2-t3a-mstd0.5", N // 10),
    ],
)
def test_rand_augment_draws_ops_magnitudes_and_signs_as_timm(text, n):
    op, argument, counts = timm_calls(text, n)
    ours = plans(text, n)
    assert_same_ops(ours, op, argument)
    assert same_counts((ours["op"] > 0).sum(axis=1), counts) > LEAST_P  # whether each op is applied


def test_ops_of_one_image_are_drawn_independently_unless_weighted():
    ops = plans("rand-m9-p1-inc1")["op"][:, :2]
    pairs = np.zeros((len(OPS), len(OPS)))
    np.add.at(pairs, (ops[:, 0], ops[:, 1]), 1)
    pairs = pairs[1:16, 1:16]
    assert stats.chi2_contingency(pairs).pvalue > LEAST_P
    weighted = plans("rand-m9-p1-tweights-n4", 20_000)["op"][:, :4]
    assert all(len(set(row)) == 4 for row in weighted.tolist())


def test_augmix_draws_chains_weights_and_blend_as_timm():
    n = N // 20
    transform, calls = recorded(augment_and_mix_transform("augmix-m4", dict(HPARAMS)))
    weights, blends, lengths = [], [], []
    mix = transform._apply_basic

    def record_weights(image: Image.Image, chain_weights: np.ndarray, blend: float) -> Image.Image:
        weights.append(chain_weights)
        blends.append(blend)
        return mix(image, chain_weights, blend)

    transform._apply_basic = record_weights
    for _ in range(n):
        before = len(calls)
        transform(Image.new("RGB", (1, 1)))
        lengths.append(len(calls) - before)
    ours = plans("augmix-m4-w3-d-1", n)
    terms = [to_plan_op(*call) for call in calls]
    assert_same_ops(ours, np.array([op for op, _ in terms]), np.array([a for _, a in terms]))
    assert same_counts((ours["op"] > 0).sum(axis=1), np.array(lengths)) > LEAST_P
    assert same_values(ours["blend"], np.array(blends)) > LEAST_P
    for chain in range(3):
        assert same_values(ours["chain_weights"][:, chain], np.array(weights)[:, chain]) > LEAST_P
    assert np.allclose(ours["chain_weights"].sum(axis=1), 1, atol=1e-6)
    first_of_each_chain = ours["op"][:, [0, CHAIN_DEPTH, 2 * CHAIN_DEPTH]]
    assert (first_of_each_chain > 0).all()


def test_three_augment_draws_as_deit_iii_describes():
    ours = plans("3aug", N // 4)
    first = np.array([op.name for op in OPS])[ours["op"][:, 0]]
    assert set(first) == {"Grayscale", "Solarize", "GaussianBlur"}
    assert stats.chisquare([(first == name).sum() for name in set(first)]).pvalue > LEAST_P
    assert (ours["argument"][first == "Solarize", 0] == 128).all()
    radius = ours["argument"][first == "GaussianBlur", 0]
    assert stats.kstest(radius, stats.uniform(0.1, 1.9).cdf).pvalue > LEAST_P
    orders, counts = np.unique(ours["op"][:, 1:4], axis=0, return_counts=True)
    assert len(orders) == 6 and stats.chisquare(counts).pvalue > LEAST_P
    for k in range(1, 4):
        factor = ours["argument"][:, k]
        assert stats.kstest(factor, stats.uniform(0.7, 0.6).cdf).pvalue > LEAST_P


# -- crop, flip, erase ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(375, 500), (600, 150), (64, 640)])
def test_crop_area_aspect_and_position_follow_timm(height, width):
    n = N if (height, width) == (375, 500) else N // 10
    image = SimpleNamespace(size=(width, height))
    draw: Callable[..., Any] = RandomResizedCropAndInterpolation.get_params
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("timm.data.transforms.F.get_image_size", lambda image: image.size)
        theirs = np.array([draw(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(n)])
    ours = plans("none", n, height, width)["crop"]
    assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()
    assert_same_boxes(ours, theirs)


def assert_same_boxes(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Area, aspect, top and left."""
    for one, other in zip(*(measures(boxes) for boxes in (ours, theirs)), strict=True):
        assert same_values(one, other) > LEAST_P


def measures(boxes: np.ndarray) -> tuple[np.ndarray, ...]:
    return boxes[:, 2] * boxes[:, 3], boxes[:, 3] / boxes[:, 2], boxes[:, 0], boxes[:, 1]


class _ErasedImage:
    """Stands for the tensor that timm erases: keeps the box."""

    def __init__(self) -> None:
        self.boxes: list[tuple[int, int, int, int]] = []

    def __setitem__(self, where: tuple[slice, slice, slice], _: Any) -> None:
        _, rows, columns = where
        self.boxes.append((rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start))


@pytest.mark.parametrize(("count", "n"), [(1, N), (4, N // 10)])
def test_erase_probability_count_area_aspect_and_position_follow_timm(count, n):
    eraser = RandomErasing(0.25, mode="const", max_count=count, device="cpu")
    boxes, counts = [], np.empty(n, np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("timm.data.random_erasing._get_pixels", lambda *a, **k: None)
        for i in range(n):
            image = _ErasedImage()
            eraser._erase(image, 3, SIZE, SIZE, None)
            boxes += image.boxes
            counts[i] = len(image.boxes)
    theirs = np.array(boxes)
    erase = plans("none", n, erase_count=count)["erase"]
    ours = erase[erase[:, :, 2] > 0]
    assert same_counts((erase[:, :, 2] > 0).sum(axis=1), counts) > LEAST_P
    assert (ours[:, :2] + ours[:, 2:] <= SIZE).all()
    assert_same_boxes(ours, theirs)


# -- flips, turns and colour jitter --------------------------------------------------------------------------


def test_colour_jitter_has_torchvisions_order_and_factors_with_every_policy():
    jitter = ColorJitter(0.4, 0.4, 0.4)
    theirs = [
        ColorJitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, None) for _ in range(N // 10)
    ]
    names = ("Brightness", "Contrast", "Color")
    orders = np.array(["".join(names[k] for k in params[0].tolist() if k < 3) for params in theirs])
    for text in ("rand-m9-mstd0.5-inc1", "3aug", "augmix", "none"):
        plan, plain = plans(text, N // 10, color_jitter=0.4), plans(text, N // 10)
        ops, factors = plan["op"][:, JITTER:], plan["argument"][:, JITTER:]
        assert same_counts(np.array(["".join(OPS[op].name for op in row) for row in ops]), orders) > LEAST_P
        for k, name in enumerate(names):
            ours = factors[ops == OP_ID[name]]
            assert (
                len(ours) == len(plan) and same_values(ours, np.array([params[k + 1] for params in theirs])) > LEAST_P
            )
        plan["op"][:, JITTER:] = plan["argument"][:, JITTER:] = 0
        assert (plan == plain).all()


def test_flips_and_quarter_turns_are_as_likely_as_asked_and_change_nothing_else():
    plain = plans("3aug", hflip=0.3)
    plan = plans("3aug", hflip=0.3, vflip=0.2, quarter_turns=0.6, color_jitter=0.4, color_jitter_prob=0.25)
    assert (plan["op"][:, JITTER] > 0).mean() == pytest.approx(0.25, abs=0.01)
    expected = dict.fromkeys(range(8), 0.0)
    for h, v, k in product((0, HFLIP), (0, VFLIP), range(4)):
        turn = 0.6 / 4 + (0.4 if k == 0 else 0.0)
        expected[h ^ v ^ int(QUARTER_TURNS[k])] += (0.3 if h else 0.7) * (0.2 if v else 0.8) * turn
    for flip, share in expected.items():
        assert (plan["flip"] == flip).mean() == pytest.approx(share, abs=0.01)
    plan["op"][:, JITTER:] = plan["argument"][:, JITTER:] = 0
    plan["flip"] = plain["flip"]
    assert (plan == plain).all()
