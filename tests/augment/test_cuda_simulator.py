"""The CUDA kernels, run by Numba's simulator, give the very bytes of the CPU back end."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage import data

from fastft.augment import draw_plan, eval_plan, level_argument, parse_policy, resized_crop, source_regions
from fastft.augment.cpu import CpuAugment
from fastft.augment.erase import DTYPES
from fastft.augment.levels import TIMM_OPS
from fastft.augment.plan import OP_ID, OPS

pytest.importorskip("numba.cuda")
SIZE = 16


def photographs(shapes: list[tuple[int, int]]) -> list[np.ndarray]:
    """Small real pictures of the given heights and widths."""
    sources = [data.astronaut(), data.coffee(), data.chelsea()]
    pictures = []
    for k, (height, width) in enumerate(shapes):
        source = sources[k % 3]
        side = max(height, width)
        square = resized_crop(source, (10, 20, 220, 220), side)
        pictures.append(square[:height, :width])
    return pictures


def pack(pictures: list[np.ndarray], plan: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(packed, offsets) of the plan's regions."""
    regions = source_regions(plan, size)
    pieces = [p[y : y + h, x : x + w].reshape(-1) for p, (y, x, h, w) in zip(pictures, regions, strict=True)]
    offsets = np.cumsum([0, *(len(piece) for piece in pieces)])
    return np.concatenate(pieces), offsets


def assert_simulator_equals_cpu(
    plan: np.ndarray, pictures: list[np.ndarray], dtype: str, tmp_path: Path
) -> None:
    augment = CpuAugment(parse_policy("none"), SIZE, dtype)
    packed, offsets = pack(pictures, plan, SIZE)
    expected = augment(packed, offsets[:-1], plan).reshape(len(plan), -1)
    case: dict[str, Any] = {"packed": packed, "offsets": offsets, "plan": plan, "size": SIZE}
    case |= {"fill": augment.finish.fill, "table": augment.finish.table, "dtype": augment.finish.dtype}
    np.savez(tmp_path / "case.npz", **case)
    command = [sys.executable, "-m", "tests.augment.simulate_cuda", "case.npz", "out.npz"]
    command[3:] = [str(tmp_path / name) for name in command[3:]]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(tmp_path / "out.npz") as answer:
        out = answer["out"]
    for row, ours, theirs in zip(plan, out, expected, strict=True):
        wrong = np.flatnonzero(ours.view(np.uint8) != theirs.view(np.uint8))
        assert not len(wrong), f"{[OPS[op] for op in row['op'] if op]}: {len(wrong)} bytes differ"


def plain_rows(count: int) -> np.ndarray:
    """Rows that show 16 x 16 pictures as they are."""
    return eval_plan(np.arange(count), [SIZE] * count, [SIZE] * count, SIZE)


def ops_at(magnitudes: list[tuple[float, int]]) -> np.ndarray:
    """A row for every op at every magnitude and sign, and one for Grayscale, which timm does not have."""
    calls = [level_argument(name, m, s, height=SIZE, width=SIZE) for name in TIMM_OPS for m, s in magnitudes]
    calls = [*dict.fromkeys(calls), (OP_ID["Grayscale"], 0.0)]
    plan = plain_rows(len(calls))
    plan["op"][:, 0], plan["argument"][:, 0] = [op for op, _ in calls], [argument for _, argument in calls]
    return plan


def test_every_op_gives_the_same_bytes(tmp_path: Path) -> None:
    plan = ops_at([(8.7, 1)])
    plan = plan[np.unique(plan["op"][:, 0], return_index=True)[1]]
    assert len(plan) == len(OPS) - 1  # all but Identity
    assert_simulator_equals_cpu(plan, photographs([(SIZE, SIZE)] * len(plan)), "float32", tmp_path)


@pytest.mark.slow
def test_every_op_gives_the_same_bytes_at_other_magnitudes_and_signs(tmp_path: Path) -> None:
    plan = ops_at([(0, 1), (4, -1), (6.3, 1), (10, -1)])
    assert_simulator_equals_cpu(plan, photographs([(SIZE, SIZE)] * len(plan)), "float32", tmp_path)


HALF = "float16"


@pytest.mark.parametrize(
    "dtype", [HALF, *(pytest.param(d, marks=pytest.mark.slow) for d in DTYPES if d != HALF)]
)
def test_the_paper_recipe_gives_the_same_bytes(dtype: str, tmp_path: Path) -> None:
    shapes = [(30, 47), (64, 20), (9, 12), (40, 40), (120, 50), (16, 90), (25, 31), (11, 11)]
    policy = parse_policy("rand-m9-n3-p0.8-mstd0.5-inc1", erase_prob=0.7, erase_count=2)
    heights, widths = np.array(shapes).T
    ids = np.arange(len(shapes))
    plan = draw_plan(policy, seed=3, epoch=1, sample_ids=ids, heights=heights, widths=widths, size=SIZE)
    plan["erase_mode"] = ids % 3
    plan["bicubic"] = ids % 4 > 0
    assert_simulator_equals_cpu(plan, photographs(shapes), dtype, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("augment", "crop"), [("augmix", "rrc"), ("3aug", "src")])
def test_chains_blur_and_simple_crops_give_the_same_bytes(augment: str, crop: str, tmp_path: Path) -> None:
    shapes = [(30, 47), (64, 20), (40, 40), (20, 36)]
    heights, widths = np.array(shapes).T
    policy = parse_policy(augment, crop=crop)
    ids = np.arange(len(shapes))
    plan = draw_plan(policy, seed=3, epoch=1, sample_ids=ids, heights=heights, widths=widths, size=SIZE)
    assert_simulator_equals_cpu(plan, photographs(shapes), "float16", tmp_path)
