"""The pages in a real browser: laid out, hovered, sorted, printed. Needs Chromium and playwright's Python package.

Three pages: of a made-up run that has everything, of one with many classes, and of a run that was trained here.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fastft.cli import main
from fastft.evaluate.mistakes import Mistake, Mistakes, RunPredictions
from fastft.report.run_report import render_run
from fastft.run.run_directory import load_run
from tests.report.browsing import OVERLAPS, opened, rows_of
from tests.train.runs import logged
from tests.written import predicted, predictions_of, write_run

pytestmark = pytest.mark.slow  # starts a browser
WIDTHS = {"desktop": 1200, "phone": 390}
PAGES = ("run_page", "many_classes_page", "trained_page")
CLASS_NAMES = [f"class {k}" for k in range(1, 8)] + ["maillot, tank suit"]
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


@pytest.fixture
def run_page(tmp_path: Path) -> Path:
    """A run under way, with everything that a page can hold."""
    folder = write_run(tmp_path / "run", "final_b16", 34, "--optim.layer_decay=0.65")
    mistakes = Mistakes(
        images=50_000,
        wrong=7_412,
        most_confident=[Mistake(k, "projectile, missile", 0.01, "screen, CRT screen", 0.97, PIXEL) for k in range(12)],
    )
    page = tmp_path / "run.html"
    page.write_text(render_run(load_run(folder), predictions=made_up_classes(CLASS_NAMES, mistakes), price=2.48))
    return page


def made_up_classes(names: Sequence[str], mistakes: Mistakes | None = None) -> RunPredictions:
    """Figures of a model that is right for most of 50 images of each class, except for two classes without a mistake."""
    noise = np.random.default_rng(0)
    labels = np.arange(50 * len(names)) % len(names)
    logits = noise.normal(size=(len(labels), len(names)))
    logits[np.arange(len(labels)), labels] += np.where(labels < 2, 20, 2)
    logits[:, :2] -= 20 * (labels >= 2)[:, None]
    return predicted(predictions_of(logits, labels), names, mistakes)


@pytest.fixture
def many_classes_page(tmp_path: Path) -> Path:
    """A page with as many classes as a confusion matrix can have, with long names."""
    folder = write_run(tmp_path / "run", "final_b16", 3)
    names = [f"{k} maillot, tank suit or bathing costume" for k in range(100)]
    page = tmp_path / "many.html"
    page.write_text(render_run(load_run(folder), predictions=made_up_classes(names)))
    return page


@pytest.fixture(scope="module")
def trained_page(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run that the trainer wrote, by the command, with its mistakes."""
    page = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["report", str(whole), "--out", str(page), "--price", "2.48"]) == 0
    return page


@pytest.fixture(params=PAGES)
def any_page(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_nothing_overlaps_or_leaves_the_page(browser, any_page, width):
    tab = opened(browser, any_page, width)
    tab.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert tab.evaluate(OVERLAPS) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.problems == []  # no script error, and nothing was asked of the network


def test_printed_pages_do_not_break_inside_figures(browser, any_page):
    tab = opened(browser, any_page, 680)  # A4 without its margins, in CSS pixels
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate(OVERLAPS) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= 680
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


@pytest.mark.parametrize("page", ["run_page", "trained_page"])
def test_evaluations_in_the_page_are_those_of_the_log(browser, page, request, tmp_path):
    tab = opened(browser, request.getfixturevalue(page))
    evaluations = logged(tmp_path / "run" if page == "run_page" else request.getfixturevalue("whole"), "eval")
    heads = [h.strip("↕ ") for h in tab.locator("#evaluations th").all_text_contents()]
    shown = [dict(zip(heads, row, strict=True)) for row in rows_of(tab, "#evaluations")]
    assert [(int(r["epoch"]), r["raw top-1 %"], r["EMA top-1 %"], r["EMA loss"]) for r in shown] == [
        (e["epoch"], f"{e['raw_top1']:.3f}", f"{e['ema_top1']:.3f}", f"{e['ema_loss']:.4f}") for e in evaluations
    ]
    if page == "trained_page":  # two classes
        assert "EMA top-5 %" not in heads
        assert [r["EMA F1 %"] for r in shown] == [f"{e['ema_macro_f1']:.3f}" for e in evaluations]
    best = max(e["ema_top1"] for e in evaluations)
    assert tab.inner_text(".figures .value") == f"{best:.2f} %"


def test_clicking_a_heading_sorts_and_then_reverses(browser, run_page):
    """Numbers downwards first, words upwards; and so on at every further click."""
    tab = opened(browser, run_page)
    for column, first in ((2, "descending"), (1, "ascending")):
        heading = f"#classes th:nth-child({column})"
        other = {"ascending": "descending", "descending": "ascending"}[first]
        for order in (first, other, first, other):
            tab.click(f"{heading} button")
            assert tab.get_attribute(heading, "aria-sort") == order
            names = [row[0] for row in rows_of(tab, "#classes")]
            if column == 1:
                assert names == sorted(CLASS_NAMES, reverse=order == "descending")
            scores = [float(row[1]) for row in rows_of(tab, "#classes")]
            if column == 2:
                assert scores == sorted(scores, reverse=order == "descending") and len(set(scores)) > 3


@pytest.mark.parametrize(("kind", "width"), [("wide", 1200), ("narrow", 390)])
def test_hovering_shows_the_logged_value(browser, run_page, tmp_path, kind, width):
    tab = opened(browser, run_page, width)
    plot = tab.locator(f"h2:text-is('Accuracy') ~ .charts .plot.{kind}").first
    plot.scroll_into_view_if_needed()
    box, geometry = plot.bounding_box(), json.loads(plot.get_attribute("data-plot"))
    epoch = 20  # drawn at 21: after it
    share = (epoch + 1 - geometry["x0"]) / (geometry["x1"] - geometry["x0"])
    x = geometry["left"] + share * (geometry["right"] - geometry["left"])
    tab.mouse.move(box["x"] + x / geometry["width"] * box["width"], box["y"] + box["height"] / 2)
    text = tab.locator(".readout:visible").inner_text()
    evaluated = next(e for e in logged(tmp_path / "run", "eval") if e["epoch"] == epoch)
    rows = dict(row.split("\t") for row in text.splitlines() if "\t" in row)
    assert float(rows["epochs trained"]) == epoch + 1
    assert float(rows["EMA"]) == pytest.approx(evaluated["ema_top1"], abs=0.006)
    assert float(rows["raw"]) == pytest.approx(evaluated["raw_top1"], abs=0.006)
    right = tab.evaluate("document.querySelector('.readout:not([hidden])').getBoundingClientRect().right")
    assert right <= width
    tab.mouse.move(1, 1)
    assert tab.locator(".readout:visible").count() == 0
