"""The page of a benchmark: medians, spread, ratios as the rounds give them; unreadable files are refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from beton_tools.base.errors import UserError
from fastft.cli import main
from fastft.cost.benchmark_file import read_bench
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


def put(document: Document, path: tuple[str | int, ...], value: Any) -> str:
    """The document as JSON, with one value replaced."""
    changed = json.loads(json.dumps(document))
    entry = changed
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    return json.dumps(changed)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("machine",), [1], r"the file: Expected object, got array - at \$\.machine"),
        (("measures", 1, "setting"), None, r"Expected object, got null - at \$\.measures\[\d\]\.setting"),
        (("measures", 0, "contenders", 1, "rounds"), [1, "2"], r"Expected float, got str - .*\.rounds"),
        (("measures", 0, "contenders", 1, "median"), float("nan"), "NaN, which is not a number"),
        (("measures", 0, "contenders", 1, "min"), -1, r"Expected float >= 0.0 - .*\.min"),
        (("measures", 0, "contenders", 1), {"name": "x"}, "a contender has neither 'median' nor 'skipped'"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_drawn_is_refused(bench_document, tmp_path, path, value, message, capsys):
    file = tmp_path / "b.json"
    file.write_text(put(bench_document, path, value))
    with pytest.raises(UserError, match=message):
        read_bench(file)
    assert main(["report", str(file)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_files_of_the_benchmarks_are_read(bench_document, tmp_path):
    (tmp_path / "b.json").write_text(json.dumps(bench_document))
    assert read_bench(tmp_path / "b.json") == bench_document
    for path in Path("benchmarks/results").glob("*.json"):
        if "measures" in json.loads(path.read_text()):
            read_bench(path)
