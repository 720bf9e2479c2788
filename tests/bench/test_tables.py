"""The tables and pictures of the README and the docs are those of the committed results."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks/results/all.json").exists(), reason="no full set of results committed yet: fastft bench all"
)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import tables

    return tables


@pytest.mark.slow  # .ci/run calls it
def test_no_number_was_typed_by_hand():
    done = subprocess.run([sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_changed_number_is_found_and_fixed(tables) -> None:  # type: ignore[no-untyped-def]
    page, results = (ROOT / "docs/benchmarks.md").read_text(), tables.Results(tables.RESULTS)
    block = tables.BLOCK.search(page)
    forged = page.replace(block[0], re.sub(r"\d", "7", block[0], count=3))
    assert forged != page and tables.filled(forged, results) == page


def test_every_table_is_on_a_page_and_every_marker_has_a_table(tables) -> None:  # type: ignore[no-untyped-def]
    marked = {found[2] for page in tables.PAGES for found in tables.BLOCK.finditer(page.read_text())}
    assert marked == set(tables.TABLES)


@pytest.mark.parametrize(("shares", "verdict"), [
    ([0.75, 0.75, 0.76], "better"), ([0.65, 0.64, 0.65], "worse"), ([0.75, 0.62, 0.73], "not told apart"),
])  # fmt: skip
def test_a_difference_of_the_study_is_paired_and_told_apart_only_over_seeds(tables, shares, verdict: str) -> None:  # type: ignore[no-untyped-def]
    hits = {seed: np.arange(400) < share * 400 for seed, share in enumerate(shares)}
    base = {seed: np.arange(400) < 0.7 * 400 for seed in range(3)} | {7: np.zeros(400, bool)}
    points, seeds, found = tables.study.Row("row", 1.0, hits).minus(tables.study.Row("base", 2.0, base))
    assert points.startswith(f"{100 * (np.mean(shares) - 0.7):+.1f}") and (seeds, found) == ("3", verdict)
