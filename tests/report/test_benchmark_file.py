"""Benchmark files that reports and costs cannot read are refused in one line that says where the error is."""

import json
from pathlib import Path
from typing import Any

import pytest

from beton_tools.base.errors import UserError
from fastft.cli import main
from fastft.cost.benchmark_file import read_bench

Document = dict[str, Any]


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
