"""Pages in a real browser. Needs Chromium (apt-get install chromium) and playwright's Python package."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]

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
    path = next(filter(answers, NAMES), None)
    if path is None:
        pytest.skip("no Chromium; apt-get install chromium")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=shutil.which(path), args=FLAGS)
        yield started
        started.close()


def answers(name: str) -> bool:
    """Ubuntu has a chromium-browser that only says where to get one."""
    return shutil.which(name) is not None and not subprocess.run([name, "--version"], capture_output=True).returncode


def opened(browser: Any, page: Path, width: int = 1200, **options: Any) -> Any:
    tab = browser.new_page(viewport={"width": width, "height": 900}, **options)
    tab.problems = []
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("console", lambda line: tab.problems.append(line.text) if line.type == "error" else None)
    tab.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else tab.problems.append(r.url))
    tab.goto(page.as_uri())
    return tab


def rows_of(tab: Any, table: str) -> list[list[str]]:
    """The text of the cells of a table, by row."""
    return tab.eval_on_selector_all(
        f"{table} tbody tr", "rows => rows.map(r => [...r.cells].map(c => c.textContent.trim()))"
    )
