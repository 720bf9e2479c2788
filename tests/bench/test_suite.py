"""`fastft bench`: a file of the documented form, a table with its numbers."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fastft.bench import BENCHES
from fastft.bench.harness import parse_peers
from fastft.bench.suite import measure_view, print_group
from fastft.cli import main
from fastft.report.page import figure

RESULTS = Path(__file__).parents[2] / "benchmarks/results/all.json"


@pytest.fixture
def photographs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFT_IMAGENET_SAMPLE", "nowhere")


def test_every_table_can_be_read_at_80_columns():
    measures = json.loads(RESULTS.read_text())["measures"]
    for _, group in groupby(measures, key=lambda m: (m["name"], m["unit"])):
        several = list(group)
        console = Console(width=80)
        with console.capture() as capture:
            print_group(several, console)
        lines = capture.get().splitlines()
        assert lines[0].startswith(several[0]["name"]) and lines[0].endswith(several[0]["unit"])
        assert max(map(len, lines)) <= 80 and "…" not in capture.get()
        for contender in (c for m in several for c in m["contenders"]):
            ours = [line.split() for line in lines if line.strip().startswith(contender["name"])]
            assert any(figure(contender["median"]) in words for words in ours)
            assert all(" ".join(words).endswith((")", *"0123456789")) for words in ours)


def test_an_unknown_peer_is_refused_and_the_known_ones_are_listed(refused):
    assert "no peer 'ffcw'; choose from ffcv, timm" in refused(["bench", "loader", "--peers", "ffcw"])
    assert parse_peers("none") == ()


def test_augmentation_alone_needs_a_gpu(monkeypatch, refused):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "there is none; loader compares" in refused(["bench", "augment"])


def test_a_recipe_is_checked_before_anything_is_measured(refused):
    assert "no_such.yaml" in refused(["bench", "all", "--recipe", "rcp/no_such.yaml"])
    assert "trains nothing" in refused(["bench", "loader", "--recipe", "rcp/final_b16.yaml"])


@pytest.mark.slow
def test_a_quick_run_of_all_benchmarks_prints_the_figures_of_its_file(tmp_path, photographs_only, capsys):
    assert main(["bench", "all", "--quick", "--out", str(tmp_path)]) == 0
    document, printed = json.loads((tmp_path / "all.json").read_text()), capsys.readouterr().out
    notes = " ".join(document["notes"])
    assert "packaged with scikit-image" in notes and "figures mean nothing" in notes and document["quick"] is True
    assert all(figure(measure["contenders"][0]["median"]) in printed for measure in document["measures"])
    assert {"cpu", "cores", "memory_gib", "torch", "versions", "load_average"} <= document["machine"].keys()
    assert {m["bench"] for m in document["measures"]} == set(BENCHES) - {"augment"}  # on a GPU only
    contenders = [c for m in document["measures"] for c in m["contenders"]]
    assert all(c.get("skipped", "not installed").startswith("not installed") for c in contenders)
    assert any(note.startswith("End to end on this machine, ") for note in document["notes"])


def ratio(better: str = "higher", **rounds: list[float]) -> Any:
    contenders = [{"name": name, "rounds": values, "median": values[0]} for name, values in rounds.items()]
    return measure_view({"contenders": contenders, "better": better})["contenders"][1]["ratio"]


def test_ratios_are_medians_over_paired_rounds():
    """A machine that is slow in one round slows both: pairs do not see it."""
    assert ratio(fastft=[100.0, 50.0, 120.0], p=[50.0, 25.0, 60.0]) == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert ratio("lower", fastft=[1.0, 2.0], p=[2.0, 8.0]) == {"median": 3.0, "min": 2.0, "max": 4.0}
    assert ratio(fastft=[90.0], p=[30.0, 90.0])["median"] == 3.0
    assert ratio(fastft=[90.0], p=[0.0]) is None
