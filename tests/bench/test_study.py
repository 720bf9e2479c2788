"""The study: its rows are recipes, its differences are paired, and its page is made of the results."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import study

    return study


@pytest.fixture
def report(study: ModuleType) -> ModuleType:
    import study_report

    return study_report


def test_the_page_in_the_repository_is_made_of_the_results(study, report) -> None:
    found = report.Study(study.read_runs())
    assert (ROOT / "docs" / "study.md").read_text() == report.page(found)


def test_a_changed_result_changes_page_and_picture(study, report, tmp_path: Path) -> None:
    runs = study.read_runs()
    for run in (r for r in runs if r["row"] == "freeze 1/2"):
        run["points"][-1]["test_ema"] = study.pack(np.arange(run["images"]) < 1000)
    found = report.Study(runs)
    assert "| freeze 1/2 | 10.0 ± 0.0 |" in report.page(found)
    report.write_plots(found, tmp_path)
    assert "not drawn: freeze 1/2" in (tmp_path / "study-dark.svg").read_text()


def test_every_row_is_a_recipe_with_the_options_and_flops_of_its_results(study, tmp_path: Path) -> None:
    for run in study.read_runs():
        if run["row"] not in study.ROWS or run["seed"]:
            continue
        assert run["options"] == study.ROWS[run["row"]][1]
        recipe = study.recipe_of(run["row"], 0, tmp_path, tmp_path / "weights.safetensors")
        assert study.recipe_work(recipe, study.recipe_arch(recipe)).train == run["points"][-1]["flops"]


@pytest.mark.parametrize(("shares", "verdict"), [
    ([0.75], "not told apart"), ([0.75, 0.75, 0.76], "better"), ([0.65, 0.64, 0.65], "worse"),
    ([0.75, 0.62, 0.73], "not told apart"),
])  # fmt: skip
def test_a_difference_is_paired_and_told_apart_only_over_seeds(report, shares, verdict: str) -> None:
    hits = {seed: np.arange(400) < share * 400 for seed, share in enumerate(shares)}
    base = {seed: np.arange(400) < 0.7 * 400 for seed in range(3)} | {7: np.zeros(400, bool)}
    found = report.difference(report.Figure("row", 1.0, hits), report.Figure("base", 2.0, base))
    assert (found.seeds, found.flops, found.verdict) == (len(shares), 0.5, verdict)
    assert found.gain == pytest.approx(100 * (np.mean(shares) - 0.7))


def test_the_pareto_front_has_what_nothing_beats(report) -> None:
    rows = [
        report.Figure(name, flops, {0: np.arange(100) < right})
        for name, flops, right in (("a", 1, 50), ("b", 2, 60), ("c", 2, 55), ("d", 3, 60), ("e", 4, 61))
    ]
    assert [f.name for f in report.pareto(rows)] == ["a", "b", "e"]


def test_so_many_images_of_each_class_are_extracted_once(
    study, tmp_path: Path, photographs: dict[str, np.ndarray]
) -> None:
    for name in ("coffee", "rocket"):
        (tmp_path / "cifar" / name).mkdir(parents=True)
        for i in range(6):
            image = Image.fromarray(photographs[name][:32, 8 * i : 8 * i + 32])
            image.save(tmp_path / "cifar" / name / f"{i}.png")
    beton = study.extract_images(tmp_path / "cifar", tmp_path / "train", 4)
    assert len(list((tmp_path / "train").glob("*/*.jpg"))) == 8 and beton.exists()
    with pytest.raises(SystemExit, match="has 6 images, fewer than 7"):
        study.extract_images(tmp_path / "cifar", tmp_path / "test", 7)
