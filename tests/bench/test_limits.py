"""Limits of the machine: which bytes and multiplications count, and how they are shown."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.bench import limits
from fastft.bench.convert_limit import convert_limits
from fastft.bench.dataset import JpegSet
from fastft.bench.harness import LIMIT, summary
from fastft.bench.limits import Rates, crop_limit, eval_limit, recipe_limit
from fastft.bench.suite import print_group
from fastft.report.bench_report import render_bench


@pytest.fixture
def beton(tmp_path: Path, photographs: dict[str, np.ndarray]) -> Path:
    for name in ("astronaut", "coffee"):
        (tmp_path / "photographs" / name).mkdir(parents=True)
        Image.fromarray(photographs[name]).save(tmp_path / "photographs" / name / "1.jpg", quality=90)
    convert_folder(tmp_path / "photographs", tmp_path / "photographs.beton", WriteOptions(workers=0))
    return tmp_path / "photographs.beton"


def test_a_crop_needs_the_bytes_of_its_share_of_the_area(beton: Path) -> None:
    jpegs = JpegSet(beton)
    heights, widths = jpegs.shapes
    zero = np.zeros(2, np.int64)
    quarter = np.stack([zero, zero, heights // 2, widths // 2], axis=1)
    assert limits._share(jpegs, quarter) == pytest.approx(0.25, rel=0.01)
    assert limits._share(jpegs, np.stack([zero, zero, heights, widths], axis=1)) == pytest.approx(1)


def test_multiplications_count_where_they_take_longer_than_the_copy() -> None:
    rates = Rates()
    rates._flop = 1e-12  # of a second
    rates._copy = {1 << n: 1e-10 for n in range(10, 30)}
    assert rates.op("Invert", 224) == pytest.approx(2 * 3 * 224**2 * 1e-10)
    assert rates.op("Rotate", 224) == rates.op("Invert", 224)
    rates._flop = 1e-9
    assert rates.op("Rotate", 224) == pytest.approx(16 * 3 * 224**2 * 1e-9)
    # halving both sides: 8 taps per row and column
    assert rates.resize(448, 448, 224) == pytest.approx(3 * 8 * (448 * 224 + 224 * 224) * 1e-9)


def test_the_limits_of_a_crop_an_evaluation_and_a_recipe_add_up(beton: Path) -> None:
    """More work is never faster: a crop's decode, then with its resize, then with ops."""
    first, crop = (crop_limit(str(beton))["decode"]() for _ in range(2))  # the first loads compiled code
    evaluation = eval_limit(str(beton), 224)["pass"]()
    plain = recipe_limit(str(beton), 224, "none")["recipe"]()
    two_threads = recipe_limit(str(beton), 224, "none", threads=2)["recipe"]()
    assert first["count"] == crop["count"] == evaluation["count"] == plain["count"] == 2
    assert 0 < crop["cpu"] < 2 * plain["cpu"] and evaluation["cpu"] > 0
    assert two_threads["wall"] == two_threads["cpu"] / 2


def test_conversion_counts_a_transformation_or_a_new_encoding(beton: Path) -> None:
    arms = convert_limits(
        str(beton.parent / "photographs"), 2, {"kept": None, "at most 64 px": 64}, quality=90
    )
    for trial in (arm() for arm in arms.values()):
        assert trial["count"] == 2 and trial["wall"] == trial["cpu"] / 2 > 0


def test_a_limit_is_shown_as_the_share_that_is_reached() -> None:
    contenders = [
        summary("fastft", [60.0, 60.0]),
        summary("peer", [30.0, 30.0]),
        summary(LIMIT, [80.0, 80.0]),
    ]
    measure = {
        "name": "Crop decode", "bench": "decode", "unit": "images/s per core", "setting": {}, "contenders": contenders
    }  # fmt: skip
    console = Console(width=80)
    with console.capture() as capture:
        print_group([measure], console)
    for text in (capture.get(), render_bench({"measures": [measure]}, "bench.json")):
        assert "75" in text.partition(LIMIT)[2] and "of it" in text.partition(LIMIT)[2]
        assert "1.33" not in text and "0.75 " not in text
    assert "limit" not in contenders[1] and contenders[2]["limit"] is True
