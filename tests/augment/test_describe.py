"""Descriptions of plans and policies agree with their values."""

import json
from itertools import product

import numpy as np

from fastft.augment import PLAN_DTYPE, describe_policy, describe_row, draw_plan, parse_policy, plan_to_json
from fastft.augment.plan import CHAIN_DEPTH, HFLIP, JITTER, OP_ID, TRANSPOSE, VFLIP

TURNED = {"vflip": 0.5, "quarter_turns": 0.5, "color_jitter": 0.4, "color_jitter_prob": 0.5}


def plan_of(augment: str, n: int = 50, **more: float) -> np.ndarray:
    policy = parse_policy(augment, erase_count=2, erase_prob=0.5, **more)
    sides = np.full(n, 300)
    return draw_plan(policy, seed=1, epoch=0, sample_ids=np.arange(n), heights=sides, widths=sides, size=224)


def test_a_description_lists_the_operations_in_execution_order():
    row = np.zeros(1, PLAN_DTYPE)[0]
    assert describe_row(row) == []
    row["flip"] = 1
    row["op"][:3] = OP_ID["Rotate"], OP_ID["Equalize"], OP_ID["TranslateY"]
    row["argument"][:3] = -27, 0, 90.7
    row["erase"][0] = 3, 4, 50, 80
    assert describe_row(row) == ["flip", "Rotate -27.0°", "Equalize", "TranslateY +91 px", "erase 50x80"]


def test_an_augmix_description_lists_chains_and_weights():
    row = np.zeros(1, PLAN_DTYPE)[0]
    row["chain_weights"][:2], row["blend"] = (0.25, 0.75), 0.4
    row["op"][0], row["op"][CHAIN_DEPTH] = OP_ID["Equalize"], OP_ID["AutoContrast"]
    row["op"][CHAIN_DEPTH + 1], row["argument"][CHAIN_DEPTH + 1] = OP_ID["Posterize"], 2
    mixture = ["mixture 40%", "25% Equalize", "75% AutoContrast then Posterize 2 bits"]
    assert describe_row(row) == mixture
    row["op"][JITTER], row["argument"][JITTER], row["flip"] = OP_ID["Contrast"], 1.3, HFLIP | VFLIP | TRANSPOSE
    assert describe_row(row) == ["flip", "vertical flip", "transpose", *mixture, "Contrast x1.30"]


def test_the_json_contains_every_field_of_the_plan():
    for augment, more in product(("rand-m9-mstd0.5-inc1", "3aug", "augmix", "none"), ({}, TURNED)):
        plan = plan_of(augment, **more)
        objects = json.loads(json.dumps(plan_to_json(plan)))
        for row, values in zip(plan, objects, strict=True):
            chains = [*values.get("chains", []), {"ops": values.get("ops", [])}]
            ops = [op for chain in chains for op in chain["ops"]]
            applied = np.flatnonzero(row["op"])
            assert [OP_ID[op["op"]] for op in ops] == row["op"][applied].tolist()
            assert [op.get("argument", 0.0) for op in ops] == row["argument"][applied].tolist()
            assert values["crop"] == row["crop"].tolist() and values["flip"] == bool(row["flip"] & HFLIP)
            assert values.get("vflip", False) == bool(row["flip"] & VFLIP)
            assert values.get("transpose", False) == bool(row["flip"] & TRANSPOSE)
            assert int(values["noise_key"], 16) == int(row["noise_key"])
            assert values["erase"] == row["erase"][row["erase"][:, 2] > 0].tolist()


def test_a_policy_description_lists_its_steps():
    assert describe_policy(parse_policy("rand-m9-mstd0.5-inc1"), 224) == [
        "random crop of 8% to 100% of the image, aspect 0.75 to 1.33, bicubic resize to 224 px",
        "horizontal flip of 50%",
        "rand-m9-mstd0.5-inc1: 2 of 15 ops (any), each applied to 50%, magnitude 9 ± 0.5, clipped to 0..10",
        "random erase of 25%: 1 box, noise per pixel",
    ]
    simple = describe_policy(parse_policy("3aug", crop="src", erase_prob=0.0, hflip=0.0), 224)
    assert simple[0].startswith("bicubic resize of the short side to 224") and len(simple) == 2
    assert "uniform in 0..3" in describe_policy(parse_policy("augmix"), 224)[2]
    assert len(describe_policy(parse_policy("none", erase_prob=0.0), 224)) == 2
    assert describe_policy(parse_policy("none", erase_prob=0.0, hflip=0.0, **TURNED), 224)[1:] == [
        "vertical flip of 50%",
        "quarter turns of 50%: by 0, 90, 180 or 270 degrees",
        "colour jitter of 50%: brightness, contrast and colour by 1 ± 0.4 in random order",
    ]
