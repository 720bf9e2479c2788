"""The tables and pictures of the README and the docs are those of the committed results."""

import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest

from fastft.choose.budget import CAUTION, SPREAD

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import tables

    return tables


@pytest.mark.slow  # .ci/run calls it
def test_no_number_was_typed_by_hand():
    done = subprocess.run([sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_changed_number_is_found_and_fixed(tables) -> None:
    page = (ROOT / "docs/benchmarks.md").read_text()
    block = tables.BLOCK.search(page)
    forged = page.replace(block[0], re.sub(r"\d", "7", block[0], count=3))
    assert forged != page and tables.filled(forged) == page


def test_every_table_is_on_a_page_and_every_marker_has_a_table(tables) -> None:
    marked = {found[2] for page in tables.PAGES for found in tables.BLOCK.finditer(page.read_text())}
    assert marked == set(tables.TABLES)


def test_the_spread_and_its_multiple_in_a_budget_are_those_of_the_results(tables) -> None:
    """`fastft.choose.budget`: the spread over sources, and the largest multiple of it that costs nothing."""
    photos = tables.photos
    _, deviation = photos._mean_and_deviation(fmean(v) for v in photos._removed(*photos.DECIDED).values())
    assert round(deviation, 2) == SPREAD
    sets = photos._compared_sets()
    lost = {multiple: fmean(photos._lost(name, multiple)[0] for name in sets) for multiple in photos.MULTIPLES}
    assert len(sets) == 7 and max(m for m in lost if lost[m] == min(lost.values())) == CAUTION


def test_all_that_is_published_of_a_processor_was_measured_by_one_commit_that_was_not_changed(tables) -> None:
    results = tables.speed.published()
    assert results and len({tables.speed.processor(result) for result in results}) == len(
        results
    )  # "AMD EPYC" is several
    for result in results:
        assert result.commit and not result.changed and not result.quick
        assert all(len(c.rounds) >= 3 for m in result.measures for case in m.cases for c in case.measured)
