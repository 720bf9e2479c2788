"""`fastft bench`: a file of the documented form, a page and a table with its numbers."""

import json
from pathlib import Path
from statistics import median

import pytest

from fastft.bench.options import parse_peers
from fastft.cli import main
from fastft.report.overheads import read_bench, read_measured
from fastft.report.page import figure


@pytest.fixture
def photographs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFT_IMAGENET_SAMPLE", "nowhere")


def test_quick_decode_writes_file_page_and_table_with_the_same_figures(
    tmp_path: Path, photographs_only: None, capsys: pytest.CaptureFixture
) -> None:
    options = ["--quick", "--peers", "none", "--count", "6", "--out", str(tmp_path)]
    assert main(["bench", "decode", *options]) == 0
    document, printed = read_bench(tmp_path / "decode.json"), capsys.readouterr().out
    page = (tmp_path / "decode.html").read_text()
    assert "packaged with scikit-image" in page and "figures mean nothing" in page
    assert [m["bench"] for m in document["measures"]] == ["decode", "decode"]
    for measure in document["measures"]:
        own = measure["contenders"][0]
        assert own["name"] == "fastft" and len(own["rounds"]) == 2
        shown = {figure(own["median"]), figure(median(own["rounds"]))}  # the file rounds its medians
        assert any(f in page for f in shown) and any(f in printed for f in shown)
    assert {"cpu", "cores", "memory_gib", "torch", "versions", "load_average"} <= document["machine"].keys()


def test_an_unknown_peer_is_refused_with_the_ones_there_are(capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "decode", "--peers", "ffcw"]) == 2
    assert "no peer 'ffcw'; choose from ffcv, timm" in capsys.readouterr().err
    assert parse_peers("none") == ()


@pytest.mark.slow
def test_quick_run_of_everything_measures_what_the_cost_model_reads(
    tmp_path: Path, photographs_only: None
) -> None:
    assert main(["bench", "all", "--quick", "--out", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "all.json").read_text())
    assert {m["bench"] for m in document["measures"]} == {
        "loader",
        "augment",
        "decode",
        "convert",
        "step",
        "e2e",
    }
    failed = [
        c
        for m in document["measures"]
        for c in m["contenders"]
        if not c.get("skipped", "not inst").startswith("not inst")
    ]
    assert not failed
    measured = read_measured(tmp_path / "all.json")
    assert measured.loader_per_core > 0 and measured.eval_loader_per_core > 0
    split = next(m for m in document["measures"] if m["name"] == "Where a step's time goes")
    assert {"forward", "backward", "optimiser", "evaluation"} <= {c["name"] for c in split["contenders"]}
    assert any(note.startswith("End to end on this machine: ") for note in document["notes"])
    assert all(m["modelled"] for m in document["measures"] if m["name"].startswith("Cores that feed"))
