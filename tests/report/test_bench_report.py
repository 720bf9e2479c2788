"""The page of a benchmark: medians, spread, ratios as the rounds give them; what was modelled is marked."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fastft.cli import main
from fastft.report.bench_report import measure_view, render_bench

Document = dict[str, Any]


def view(*contenders: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return measure_view({"name": "m", "unit": "u", "contenders": list(contenders), **keys})


def test_ratios_are_medians_over_paired_rounds():
    """A machine that is slow in one round slows both: pairs do not see it."""
    own, peer = [100.0, 50.0, 120.0], [50.0, 25.0, 60.0]
    shown = view({"name": "fastft", "rounds": own, "median": 100}, {"name": "p", "rounds": peer, "median": 50})
    assert shown["contenders"][1]["ratio"] == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert shown["contenders"][0]["ratio"] is None


def test_bars_start_at_zero_and_end_inside_the_axis():
    shown = view({"name": "fastft", "rounds": [90, 100, 130], "median": 100}, {"name": "p", "median": 7})
    own = shown["contenders"][0]["bar"]
    assert own["median"] == pytest.approx(100 * 100 / shown["axis"]["end"])
    assert own["max"] <= 100
    assert shown["axis"]["ticks"][0][1] == 0 and shown["axis"]["ticks"][-1][1] == pytest.approx(100)


def test_page_marks_modelled_and_skipped_contenders(bench_document):
    page = render_bench(bench_document, "bench.json")
    assert page.count('class="tag">modelled') == 1
    assert "DALI was not run: not installed: pip install nvidia-dali-cuda120" in page
    assert "AMD EPYC 7B13" in page and bench_document["command"] in page


def test_command_writes_beside_the_file(tmp_path, bench_document):
    (tmp_path / "b.json").write_text(json.dumps(bench_document))
    assert main(["report", str(tmp_path / "b.json")]) == 0
    assert "Loader, whole recipe" in (tmp_path / "b.html").read_text()


def test_the_documented_example_is_a_benchmark_file(tmp_path):
    text = (Path(__file__).parents[2] / "docs/bench-schema.md").read_text()
    (tmp_path / "b.json").write_text(re.search(r"```json\n(.*?)```", text, re.S)[1])
    assert main(["report", str(tmp_path / "b.json")]) == 0
    assert re.search(r"3\.94 .</span>", (tmp_path / "b.html").read_text())
