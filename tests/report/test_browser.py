"""The pages in a real browser: laid out, hovered, sorted, printed. Needs Chromium and playwright's Python package."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastft.report.bench_report import render_bench
from fastft.report.mistakes import ClassScore, Mistake, Mistakes
from fastft.report.run_report import render_run
from fastft.report.runs import load_run
from tests.report.conftest import write_run

pytestmark = pytest.mark.slow

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
WIDTHS = {"desktop": 1200, "phone": 390}
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="

# Every two pieces of text on the page that lie on each other by more than a pixel; what scrolls aside is cut off.
OVERLAPS = """() => {
  const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  const pieces = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (!node.textContent.trim() || !node.parentElement.checkVisibility() || node.parentElement.closest("script")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const r of range.getClientRects()) pieces.push([r.left, r.top, r.right, r.bottom, node.textContent.trim()]);
  }
  const found = [];
  for (let i = 0; i < pieces.length; i++) for (let j = i + 1; j < pieces.length; j++) {
    const [a, b] = [pieces[i], pieces[j]];
    const wide = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
    const high = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
    if (wide > 1 && high > 3) found.push(`${a[4]} | ${b[4]}`);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright; pip install playwright")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium; apt-get install chromium")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def run_page(tmp_path: Path) -> Path:
    """A run under way, with everything that a page can hold."""
    folder = write_run(tmp_path / "run", "final_b16", 34, "--optim.layer_decay=0.65")
    mistakes = Mistakes(
        images=50_000,
        wrong=7_412,
        classes=[ClassScore(f"class {k}", 10.5 * k, 50, "maillot, tank suit", k) for k in range(1, 9)],
        surest=[
            Mistake(k, "projectile, missile", 0.01, "screen, CRT screen", 0.97, PIXEL) for k in range(12)
        ],
    )
    page = tmp_path / "run.html"
    page.write_text(render_run(load_run(folder), mistakes=mistakes, price=2.48))
    return page


@pytest.fixture
def bench_page(tmp_path: Path, bench_document: dict[str, Any]) -> Path:
    page = tmp_path / "bench.html"
    page.write_text(render_bench(bench_document, "bench.json"))
    return page


@pytest.fixture(params=["run_page", "bench_page"])
def either_page(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def opened(browser: Any, page: Path, width: int = 1200, **options: Any) -> Any:
    tab = browser.new_page(viewport={"width": width, "height": 900}, **options)
    tab.problems = []
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("console", lambda line: tab.problems.append(line.text) if line.type == "error" else None)
    tab.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else tab.problems.append(r.url))
    tab.goto(page.as_uri())
    return tab


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_nothing_overlaps_or_runs_out_of_the_page(browser: Any, either_page: Path, width: int) -> None:
    tab = opened(browser, either_page, width)
    tab.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert tab.evaluate(OVERLAPS) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.problems == []  # no script error, and nothing was asked of the network


def test_printed_pages_hold_together(browser: Any, either_page: Path) -> None:
    tab = opened(browser, either_page, 680)  # A4 without its margins, in CSS pixels
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate(OVERLAPS) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= 680
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_text_stands_out_in_light_and_dark(browser: Any, either_page: Path) -> None:
    def luminance(scheme: str) -> tuple[float, float]:
        tab = opened(browser, either_page, color_scheme=scheme)
        style = "getComputedStyle(document.body)"
        colours = tab.evaluate(f"[{style}.backgroundColor, {style}.color]")
        paper, ink = (sum(map(int, c[4:-1].split(","))) / 765 for c in colours)
        return paper, ink

    (light_paper, light_ink), (dark_paper, dark_ink) = luminance("light"), luminance("dark")
    assert light_paper - light_ink > 0.7
    assert dark_ink - dark_paper > 0.7


def test_numbers_in_the_page_are_those_of_the_run(browser: Any, run_page: Path, tmp_path: Path) -> None:
    tab = opened(browser, run_page)
    tab.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    shown = tab.eval_on_selector_all(
        "#evaluations tbody tr", "rows => rows.map(r => [...r.cells].map(c => c.textContent))"
    )
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    logged = [e for e in lines if e["kind"] == "eval"]
    assert [(int(r[0]), r[1], r[4], r[6]) for r in shown] == [
        (e["epoch"], f"{e['raw_top1']:.3f}", f"{e['ema_top1']:.3f}", f"{e['ema_loss']:.4f}") for e in logged
    ]


def test_numbers_in_the_page_are_those_of_the_benchmark(
    browser: Any, bench_page: Path, bench_document: dict[str, Any]
) -> None:
    tab = opened(browser, bench_page)
    shown = tab.eval_on_selector_all(
        "table.bench td.n:nth-child(3)", "cells => cells.map(c => Number(c.dataset.v))"
    )
    measured = [c["median"] for m in bench_document["measures"] for c in m["contenders"] if "median" in c]
    assert shown == pytest.approx(measured)
    bars = tab.eval_on_selector_all(
        "table.bench:first-of-type .fill",
        "bars => bars.slice(0, 3).map(b => b.getBoundingClientRect().width)",
    )
    first = [c["median"] for c in bench_document["measures"][0]["contenders"][:3]]
    assert [b / bars[0] for b in bars] == pytest.approx([m / first[0] for m in first], rel=0.01)


def test_a_click_on_a_heading_sorts(browser: Any, run_page: Path) -> None:
    tab = opened(browser, run_page)

    def column() -> list[float]:
        cells = tab.eval_on_selector_all(
            "#classes tbody tr td:nth-child(2)", "c => c.map(x => x.textContent)"
        )
        return [float(c) for c in cells]

    tab.click("#classes th:nth-child(2) button")
    assert column() == sorted(column(), reverse=True)
    tab.click("#classes th:nth-child(2) button")
    assert column() == sorted(column())
    assert tab.get_attribute("#classes th:nth-child(2)", "aria-sort") == "ascending"
    tab.click("#classes th:nth-child(1) button")
    names = tab.eval_on_selector_all("#classes tbody tr td:first-child", "c => c.map(x => x.textContent)")
    assert names == [f"class {k}" for k in range(1, 9)]


@pytest.mark.parametrize(("kind", "width"), [("wide", 1200), ("narrow", 390)])
def test_hovering_reads_off_the_logged_value(
    browser: Any, run_page: Path, tmp_path: Path, kind: str, width: int
) -> None:
    tab = opened(browser, run_page, width)
    plot = tab.locator(f".plot.{kind}").first
    plot.scroll_into_view_if_needed()
    box, geometry = plot.bounding_box(), json.loads(plot.get_attribute("data-plot"))
    epoch = 20  # drawn at 21: after it
    share = (epoch + 1 - geometry["x0"]) / (geometry["x1"] - geometry["x0"])
    x = geometry["left"] + share * (geometry["right"] - geometry["left"])
    tab.mouse.move(box["x"] + x / geometry["width"] * box["width"], box["y"] + box["height"] / 2)
    text = tab.locator(".readout:visible").inner_text()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    logged = next(e for e in lines if e["kind"] == "eval" and e["epoch"] == epoch)
    rows = dict(row.split("\t") for row in text.splitlines() if "\t" in row)
    assert float(rows["epochs trained"]) == epoch + 1
    assert float(rows["EMA"]) == pytest.approx(logged["ema_top1"], abs=0.006)
    assert float(rows["raw"]) == pytest.approx(logged["raw_top1"], abs=0.006)
    right = tab.evaluate("document.querySelector('.readout:not([hidden])').getBoundingClientRect().right")
    assert right <= width
    tab.mouse.move(1, 1)
    assert tab.locator(".readout:visible").count() == 0


def test_arrow_keys_read_off_too(browser: Any, run_page: Path) -> None:
    tab = opened(browser, run_page)
    tab.locator(".plot.wide").first.focus()
    tab.keyboard.press("ArrowRight")
    assert "epoch" in tab.locator(".readout:visible").inner_text()
