"""Charts: points where they belong, ticks that are round, data that cannot break out of the page."""

import json
import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastft.report.charts import LABEL_HEIGHT, MAX_POINTS, Chart, Series, apart, nice_step, render_chart, ticks

finite = st.floats(-1e3, 1e3)


@given(finite, st.floats(1e-3, 1e6), st.integers(2, 8))
def test_ticks_are_round_evenly_spaced_and_inside(low, span, count):
    found = ticks(low, low + span, count)
    step = nice_step(span / count)
    assert all(low - 1e-6 * step <= t <= low + span + 1e-6 * step for t in found)
    assert all(math.isclose(b - a, step, rel_tol=1e-3) for a, b in pairwise(found))
    assert len(found) >= count // 3


def test_a_point_is_drawn_at_its_value():
    page = render_chart(Chart("t", "x", "y", [Series("s", "own", [0, 5, 10], [0, 50, 100])]))
    plot = json.loads(re.search(r'data-plot="([^"]+)"', page)[1].replace("&#34;", '"'))
    x, y = map(float, re.findall(r'circle class="dot own" cx="([\d.]+)" cy="([\d.]+)"', page)[1])
    assert x == pytest.approx((plot["left"] + plot["right"]) / 2, abs=0.1)
    assert y == pytest.approx((plot["top"] + plot["bottom"]) / 2, abs=0.1)


def test_long_curves_are_thinned_to_means():
    n = 10 * MAX_POINTS
    page = render_chart(Chart("t", "x", "y", [Series("s", "own", range(n), [float(k % 2) for k in range(n)])]))
    (drawn,) = json.loads(re.search(r'application/json">(.*?)</script>', page)[1])["series"]
    assert len(drawn["x"]) == MAX_POINTS
    assert set(drawn["y"]) == {0.5}


def y_range(chart: Chart) -> tuple[float, float]:
    page = render_chart(chart)
    low, high = (re.search(rf"y{k}&#34;: (-?[\d.]+)", page) for k in (0, 1))
    assert low is not None and high is not None
    return float(low[1]), float(high[1])


@pytest.mark.parametrize("points", [3, 40])
@pytest.mark.parametrize(("focus", "worst", "own", "paper"), [("top", 20.0, 40.0, 85.0), ("bottom", 6.0, 4.0, 1.0)])
def test_a_run_far_from_its_reference_stays_visible(points, focus, worst, own, paper):
    """Where the run ends, and all of it where it is short: the paper's curve must not push it out."""

    def curve(end: float, count: int) -> list[float]:
        return [worst + (end - worst) * min(1, 20 * k / count) for k in range(count + 1)]

    run = Series("run", "own", range(points + 1), curve(own, points))
    reference = Series("paper", "own reference", range(51), curve(paper, 50))
    low, high = y_range(Chart("t", "x", "y", [run, reference], focus))
    seen = run.y if points == 3 else run.y[-1:]
    assert all(low <= y <= high for y in seen) and low <= paper <= high


def test_names_cannot_break_out_of_the_page():
    name = "</script><script>alert(1)</script>"
    page = render_chart(Chart(name, name, name, [Series(name, "own", [0, 1], [0, 1])]))
    assert "<script>alert" not in page
    assert page.count("</script>") == 1


@given(st.lists(st.floats(0, 200), min_size=1, max_size=12).map(sorted))
def test_labels_at_the_ends_of_lines_do_not_overlap_and_stay_beside_the_plot(ys):
    places = apart(ys, 0, 200)
    assert all(b - a >= LABEL_HEIGHT - 1e-6 for a, b in pairwise(places))
    assert places[0] >= 0 and places[-1] <= 200
    if all(b - a >= LABEL_HEIGHT for a, b in pairwise(ys)):
        assert places == ys


def test_lines_with_labels_at_their_ends_have_no_legend():
    lines = [Series(name, "own", [1, 2], [k, 2 * k]) for k, name in enumerate(("one", "another name"))]
    page = render_chart(Chart("t", "x", "y", lines, labels_at_ends=True))
    assert "legend" not in page and page.count('<text class="end"') == 4  # in both drawings
