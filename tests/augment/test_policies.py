"""Policy strings mean what timm means by them; anything else is refused in one line."""

import math
import re
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data.auto_augment import LEVEL_TO_ARG, augment_and_mix_transform, rand_augment_transform

from beton_tools.base.errors import UserError
from fastft.augment.plan import TIMM_OPS
from fastft.augment.policies import AugmentPolicy, AugMix, RandAugment, ThreeAugment
from fastft.augment.recipe_policy import build_policy
from fastft.recipe import load_recipe
from tests.augment.single_ops import level_argument

RAND_PARTS = {
    "m": st.integers(0, 15).map(lambda v: f"m{v}"),
    "n": st.integers(1, 3).map(lambda v: f"n{v}"),
    "p": st.sampled_from(["p0.5", "p1", "p0.25", "p1.0"]),
    "mstd": st.sampled_from(["mstd0", "mstd0.5", "mstd1", "mstd100", "mstd101"]),
    "mmax": st.integers(1, 20).map(lambda v: f"mmax{v}"),
    "ops": st.sampled_from(["inc0", "inc1", "tweights", "t3a", "t3aw"]),
}
AUGMIX_PARTS = {
    "m": st.integers(0, 10).map(lambda v: f"m{v}"),
    "w": st.integers(1, 4).map(lambda v: f"w{v}"),
    "d": st.integers(1, 3).map(lambda v: f"d{v}"),
    "a": st.sampled_from(["a1", "a0.5"]),
    "mstd": st.sampled_from(["mstd0", "mstd0.5"]),
}


def strings(kind: str, parts: dict[str, st.SearchStrategy[str]]) -> st.SearchStrategy[str]:
    """`kind` followed by any choice of the parts in any order."""
    chosen = st.lists(st.sampled_from(sorted(parts)), unique=True).flatmap(
        lambda names: st.tuples(*(parts[name] for name in names))
    )
    return chosen.map(lambda words: "-".join([kind, *words]))


@settings(max_examples=60, deadline=None)
@given(strings("rand", RAND_PARTS))
def test_every_rand_string_is_parsed_as_by_timm(text):
    ours, theirs = AugmentPolicy(text).auto_augment, rand_augment_transform(text, {"img_mean": (0, 0, 0)})
    assert isinstance(ours, RandAugment)
    assert ours.ops == tuple(op.name for op in theirs.ops)
    assert ours.count == theirs.num_layers
    assert ours.replacement == (theirs.choice_weights is None)
    if theirs.choice_weights is not None:
        assert np.allclose(np.array(ours.weights) / sum(ours.weights), theirs.choice_weights)
    op = theirs.ops[0]
    assert (ours.probability, ours.magnitude, ours.magnitude_std) == (op.prob, op.magnitude, op.magnitude_std)
    assert ours.magnitude_max == (op.magnitude_max or 10)


@settings(max_examples=30, deadline=None)
@given(strings("augmix", AUGMIX_PARTS))
def test_every_augmix_string_is_parsed_as_by_timm(text):
    ours, theirs = AugmentPolicy(text).auto_augment, augment_and_mix_transform(text, {"img_mean": (0, 0, 0)})
    assert isinstance(ours, AugMix)
    assert ours.ops == tuple(op.name for op in theirs.ops)
    assert (ours.width, ours.depth, ours.alpha) == (theirs.width, theirs.depth, theirs.alpha)
    op = theirs.ops[0]
    assert (ours.magnitude, ours.magnitude_std) == (op.magnitude, op.magnitude_std)


def test_the_strings_of_the_documentation_parse():
    assert AugmentPolicy("augmix-m3-w3-d-1").auto_augment == AugMix()
    assert AugmentPolicy("3aug").auto_augment == ThreeAugment(jitter=0.3)
    assert AugmentPolicy("3aug-j0").auto_augment == ThreeAugment(jitter=0.0)
    assert AugmentPolicy("none").auto_augment is None


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.text(max_size=30),
        st.lists(st.text(string.ascii_lowercase + string.digits + ".-", max_size=6), max_size=4).map(
            lambda parts: "-".join(["rand", *parts])
        ),
        strings("rand", {key: st.just(f"{key}99999") for key in RAND_PARTS}),
    )
)
def test_any_other_text_is_parsed_or_is_a_one_line_user_error(text):
    try:
        AugmentPolicy(text)
    except UserError as error:
        assert "\n" not in str(error) or "\n" in text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("rand-x3", "'x3'"),
        ("rand-m9-m8", "twice"),
        ("rand-m9.5", "whole number"),
        ("rand-n13", "1 to 12"),
        ("rand-tfoo", "weights"),
        ("rand-tweights-inc1", "Remove inc"),
        ("rand-inc", "'inc' is not understood"),
        ("augmix-b1", "Valid keys: m, w, d, a, mstd"),
        ("augmix-d0", "d0"),
        ("none-m3", "Valid keys: none"),
        ("autoaugment", "rand, 3aug, augmix, none"),
    ],
)
def test_an_error_names_the_part_and_the_expected_form(text, named):
    with pytest.raises(UserError, match=re.escape(named)):
        AugmentPolicy(text)


@pytest.mark.parametrize(
    "options",
    [
        {"crop": "center"},
        {"scale": (0.5, 0.1)},
        {"scale": (0.1, 1.5)},
        {"ratio": (0, 1)},
        {"hflip": 1.5},
        {"erase_prob": math.nan},
        {"erase_mode": "noise"},
        {"erase_count": 5},
        {"interpolation": "random"},
        {"std": (1, 1, 0)},
        {"mean": (1, 1)},
        {"mean": (1e38, 0, 0)},
        {"mean": (math.nan, 0, 0)},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UserError):
        AugmentPolicy("none", **options)


@pytest.mark.parametrize("name", sorted(TIMM_OPS))
def test_magnitudes_become_the_arguments_that_timm_gives_pillow(name, monkeypatch):
    height, width = 180, 224
    hparams = {"translate_const": int(0.45 * min(height, width))}
    for sign, chance in ((1, 0.2), (-1, 0.9)):
        monkeypatch.setattr("random.random", lambda chance=chance: chance)
        for magnitude in [*np.arange(0, 10.01, 0.1), 12.0, 20.0]:
            level = LEVEL_TO_ARG[name]
            theirs = level(magnitude, hparams)[0] if level else 0.0
            if name == "PosterizeIncreasing":
                theirs = max(0, theirs)  # fewer than 0 bits is black too
            elif name == "Desaturate":
                # timm's op, not its level, makes the enhance factor
                theirs = min(1.0, max(0.0, 1.0 - theirs))
            elif name.endswith("Rel"):
                theirs *= width if name[9] == "X" else height
            assert level_argument(name, magnitude, sign, height=height, width=width)[1] == theirs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--augment.color_jitter=0.4", "--augment.policy=rand-m9-n10"], "with color_jitter use n9 or w3 at most"),
        (["--augment.color_jitter=0.4", "--augment.policy=augmix-w4"], "with color_jitter use n9 or w3 at most"),
    ],
)
def test_jitter_that_does_not_fit_the_policy_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        build_policy(load_recipe("final_b16", options))
