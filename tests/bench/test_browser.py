"""Pages of benchmarks in a real browser, at three widths, light and dark: nothing overflows, every chart has marks, no error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastft.bench.page.comparison import write_bench_page
from tests.bench.made_up import GPU, result
from tests.report.browsing import OVERLAPS, opened, rows_of

pytestmark = pytest.mark.slow  # starts a browser
WIDTHS = (1280, 800, 390)
PAGES: dict[str, Callable[[], list[Any]]] = {
    "one": lambda: [result()],
    "gpu": lambda: [result(gpu=GPU)],
    "compared": lambda: [result(), result(cpu="another made-up processor", seed=1, scale=0.8), result(seed=2)],
}
# for every chart on the page, the number of marks that have an area (bars, parts) or a length (lines) on this screen
MARKS = """() => [...document.querySelectorAll(".bench-figure, .chart")].map((figure) => {
  const marks = [...figure.querySelectorAll(".fill, .part, path.line:not(.range)")];
  const visible = (mark) => {
    const r = mark.getBoundingClientRect();
    return mark.checkVisibility() && (r.width > 0.5 || r.height > 0.5);
  };
  return [figure.querySelector("figcaption").textContent.trim(), marks.filter(visible).length];
})"""


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"{request.param}.html"
    write_bench_page(PAGES[request.param](), path)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_everything_fits_and_every_chart_has_marks(browser, page, width, scheme):
    tab = opened(browser, page, width, color_scheme=scheme)
    tab.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(OVERLAPS) == []
    marks = dict(tab.evaluate(MARKS))
    assert len(marks) > 10 and all(marks.values()), marks
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) > 600) == (scheme == "light")
    assert tab.problems == []  # no error in the console, and nothing was asked of the network


def test_a_printed_page_is_light_and_has_all_figures(browser, page):
    tab = opened(browser, page, 680)  # A4 without its margins, in CSS pixels
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 680
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    if page.stem != "compared":
        assert tab.locator("#figures tbody tr").first.is_visible()


def test_a_bar_is_drawn_as_long_as_its_value(browser, tmp_path):
    path = tmp_path / "one.html"
    write_bench_page([result()], path)
    tab = opened(browser, path)
    figure = tab.locator(".measure", has=tab.get_by_text("Loader, crop and flip", exact=True))
    widths = figure.locator(".fill").evaluate_all("bars => bars.map((bar) => bar.getBoundingClientRect().width)")
    values = figure.locator("tbody .value").all_text_contents()
    numbers = [float(v.replace(",", "")) for v in values if "faster" not in v]
    assert [w / widths[0] for w in widths] == pytest.approx([n / numbers[0] for n in numbers], abs=0.01)


def test_the_table_of_all_figures_sorts(browser, tmp_path):
    path = tmp_path / "one.html"
    write_bench_page([result()], path)
    tab = opened(browser, path)
    tab.click(".all-figures summary")
    tab.click("#figures th:nth-child(3) button")
    medians = [float(row[2].replace(",", "")) for row in rows_of(tab, "#figures")]
    assert medians == sorted(medians, reverse=True) and len(set(medians)) > 20


def test_a_phone_shows_a_few_screens_with_the_first_measure_open(browser, tmp_path):
    path = tmp_path / "one.html"
    write_bench_page([result()], path)
    tab = opened(browser, path, 390)
    assert tab.evaluate("document.documentElement.scrollHeight") < 6 * 844
    folds = tab.locator(".fold")
    assert folds.first.locator(".fill").first.is_visible() and not folds.nth(1).locator(".fill").first.is_visible()
    folds.nth(1).locator("summary").click()
    assert folds.nth(1).locator(".fill").first.is_visible()
    wide = opened(browser, path, 1280)
    assert all(wide.locator(".fold").nth(k).get_attribute("open") is not None for k in range(folds.count()))
