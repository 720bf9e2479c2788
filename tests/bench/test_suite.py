"""`fastft bench`: a file of the documented form, a page and a table with its numbers."""

import json
from itertools import groupby
from pathlib import Path

import pytest
from rich.console import Console

from fastft.bench import BENCHES
from fastft.bench.harness import LIMIT, parse_peers, summary
from fastft.bench.suite import print_group
from fastft.cli import main
from fastft.cost.benchmark_file import read_bench
from fastft.cost.price import read_measured
from fastft.report.bench_report import render_bench
from fastft.report.page import figure

RESULTS = Path(__file__).parents[2] / "benchmarks/results/all.json"


@pytest.fixture
def photographs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFT_IMAGENET_SAMPLE", "nowhere")


def test_every_table_can_be_read_at_80_columns():
    measures = read_bench(RESULTS)["measures"]
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
            whole = (")", *"0123456789", "of it") if contender.get("limit") else (")", *"0123456789")
            assert all(" ".join(words).endswith(whole) for words in ours)


def test_an_unknown_peer_is_refused_and_the_known_ones_are_listed(refused):
    assert "no peer 'ffcw'; choose from ffcv, timm" in refused(["bench", "decode", "--peers", "ffcw"])
    assert parse_peers("none") == ()


def test_augmentation_alone_needs_a_gpu(monkeypatch, refused):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "there is none; loader compares" in refused(["bench", "augment"])


def test_a_recipe_is_checked_before_anything_is_measured(refused):
    assert "no_such.yaml" in refused(["bench", "all", "--recipe", "rcp/no_such.yaml"])
    assert "trains nothing" in refused(["bench", "decode", "--recipe", "rcp/final_b16.yaml"])


@pytest.mark.slow
def test_a_quick_run_of_all_benchmarks_has_a_page_and_the_roles_that_the_cost_model_reads(
    tmp_path, photographs_only, capsys
):
    assert main(["bench", "all", "--quick", "--out", str(tmp_path)]) == 0
    document, printed = read_bench(tmp_path / "all.json"), capsys.readouterr().out
    page = (tmp_path / "all.html").read_text()
    assert "packaged with scikit-image" in page and "figures mean nothing" in page and document["quick"] is True
    for own in (measure["contenders"][0] for measure in document["measures"]):
        assert figure(own["median"]) in page and figure(own["median"]) in printed
    assert {"cpu", "cores", "memory_gib", "torch", "versions", "load_average"} <= document["machine"].keys()
    assert {m["bench"] for m in document["measures"]} == set(BENCHES) - {"augment"}  # on a GPU only
    contenders = [c for m in document["measures"] for c in m["contenders"]]
    assert all(c.get("skipped", "not installed").startswith("not installed") for c in contenders)
    (tmp_path / "all.json").write_text(json.dumps({**document, "quick": False}))  # what is quick is refused
    measured = read_measured(tmp_path / "all.json")
    assert measured["loader_per_core"] > 0 and measured["eval_loader_per_core"] > 0
    split = next(m for m in document["measures"] if m["name"] == "Where a step's time goes")
    assert {"forward", "backward", "optimiser", "evaluation"} <= {c["name"] for c in split["contenders"]}
    assert any(note.startswith("End to end on this machine, ") for note in document["notes"])


def test_a_limit_is_shown_as_the_share_that_is_reached():
    contenders = [summary(n, [v, v]) for n, v in (("fastft", 60.0), ("peer", 30.0), (LIMIT, 80.0))]
    measure = {"name": "m", "bench": "decode", "unit": "images/s", "setting": {}, "contenders": contenders}
    console = Console(width=80)
    with console.capture() as capture:
        print_group([measure], console)
    for text in (capture.get(), render_bench({"measures": [measure]}, "bench.json")):
        assert "75" in text.partition(LIMIT)[2] and "of it" in text.partition(LIMIT)[2]
        assert "1.33" not in text and "0.75 " not in text
    assert "limit" not in contenders[1] and contenders[2]["limit"] is True
