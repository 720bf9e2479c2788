"""`fastft bench`: a file of the documented form, a table with its numbers."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from beton_tools.base.errors import UserError
from fastft.bench import BENCHES, suite
from fastft.bench.circumstances import Watch
from fastft.bench.harness import Options
from fastft.bench.measure import Plan, Variant, parse_peers
from fastft.bench.suite import extended, new_result, planned
from fastft.cli import main
from fastft.machine.bench_result import Images, Machine, Result, read_result, spread
from fastft.report.page import figure
from tests.bench import made_up


@pytest.fixture
def photographs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFT_IMAGENET_SAMPLE", "nowhere")


def test_an_unknown_peer_is_refused_and_the_known_ones_are_listed(refused):
    assert "no peer 'ffcw'. Choose from dali, datago, ffcv" in refused(["bench", "loader", "--peers", "ffcw"])
    assert parse_peers("none") == ()


def test_a_benchmark_or_measure_that_does_not_exist_is_refused(refused):
    assert "no benchmark 'loder'. Choose from decode, augment, loader" in refused(["bench", "loder"])
    assert [plan.key for plan in planned("loader.cold")] == ["loader.cold"]


def test_measures_that_need_a_gpu_are_left_out_without_one(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "loader.gpu" not in {plan.key for plan in planned("all")}
    with pytest.raises(UserError, match="needs a GPU, and this machine has none"):
        planned("augment.gpu")


def test_a_recipe_is_checked_before_anything_is_measured(refused):
    assert "no_such.yaml" in refused(["bench", "all", "--recipe", "rcp/no_such.yaml"])
    assert "trains nothing" in refused(["bench", "loader", "--recipe", "rcp/final_b16.yaml"])


def check_printed(result: Result, printed: str) -> None:
    for measure in result.measures:
        assert all(figure(spread(c).median) in printed for case in measure.cases for c in case.measured)
    lines = [line for line in printed.splitlines() if not line.endswith((".json", ".html"))]  # paths are not broken
    assert max(map(len, lines)) <= 80 and "…" not in printed


@pytest.mark.slow
def test_a_quick_run_stores_what_it_prints_and_another_adds_to_it(tmp_path, photographs_only, capsys):
    given = ["--quick", "--peers", "timm", "--rounds", "1", "--count", "4", "--out", str(tmp_path)]
    assert main(["bench", "decode", *given]) == 0
    result = read_result(tmp_path / "decode.json")
    assert result.quick and result.machine.cores >= 1 and result.machine.libraries["timm"]
    assert "packaged with scikit-image" in result.images.what
    [measure] = result.measures
    assert measure.key == "decode.crop"
    for case in measure.cases:
        assert [c.name for c in case.measured] == ["fastft", "libjpeg-turbo's minimum", "Pillow"]
        assert all(len(c.rounds) == 1 and c.rounds[0].cpu > 0 for c in case.measured)
    check_printed(result, capsys.readouterr().out)
    page = (tmp_path / "decode.html").read_text()
    assert "quick run" in page and all(
        figure(spread(c).median) in page for case in measure.cases for c in case.measured
    )

    assert main(["bench", "decode", *given, "--add", str(tmp_path / "decode.json")]) == 0
    again = read_result(tmp_path / "decode.json")
    assert len(again.sessions) == 2 and [m.key for m in again.measures] == ["decode.crop"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_quick_run_of_all_benchmarks_measures_everything(tmp_path, photographs_only, capsys, monkeypatch):
    """The other peers are measured by tests of their own: each is a process that imports torch, in every measure."""
    monkeypatch.chdir(tmp_path)
    Path("my_loader.py").write_text("def make(folder, size, batch):\n    return [([0] * batch, [0] * batch)] * 3\n")
    few = ["--quick", "--rounds", "1", "--count", "4", "--peers", "timm"]
    assert main(["bench", "all", *few, "--contender", "my_loader.py:make", "--out", "out"]) == 0
    result = read_result(tmp_path / "out/all.json")
    check_printed(result, capsys.readouterr().out)
    assert {m.bench for m in result.measures} == set(BENCHES)
    assert {plan.key for plan in planned("all")} <= {m.key for m in result.measures}
    contenders = [c for m in result.measures for case in m.cases for c in case.contenders]
    assert all((c.skipped or "not installed").startswith("not installed") for c in contenders)
    assert "my_loader.py:make" in {c.name for c in contenders}
    assert any(note.startswith("End to end on this machine, ") for note in result.notes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fastft": "0.1"}, "another version: the file has fastft 0.1, and this is fastft "),
        ({"commit": "abc"}, "another commit: the file has commit abc, and this is commit "),
        (
            {"changed": None},
            "another state of the working tree: the file has a commit without git, and this is a commit with",
        ),
        ({"quick": True}, "another kind of run: the file has a quick run, and this is a full run"),
        (
            {"images": Images(what="5 images", count=5, mean_kb=1.0)},
            "other images: the file has 5 images (1 kB each), and this is 4 images (1 kB each, SHA-256 abababababab)",
        ),
        (
            {"images": Images(what="4 images", count=4, mean_kb=1.0, sha256="cd" * 32)},
            "other images: the file has 4 images (1 kB each, SHA-256 cdcdcdcdcdcd), and this is 4 images (1 kB each, SHA-256 ab",
        ),
        ({"machine": {"cores": 512}}, "another machine or environment, which differ in: cores."),
    ],
)
def test_measures_are_added_only_to_a_result_that_they_belong_to(change, said, monkeypatch):
    monkeypatch.setattr(suite, "commit", lambda: ("f" * 40, False))
    watch, images = Watch("fastft bench decode"), Images(what="4 images", count=4, mean_kb=1.0, sha256="ab" * 32)
    one, two = (new_result(images, False, watch) for _ in range(2))
    assert len(extended(one, two).sessions) == 2
    for name, value in change.items():
        machine = {field: getattr(one.machine, field) for field in one.machine.__struct_fields__}
        setattr(one, name, Machine(**machine | value) if name == "machine" else value)
    with pytest.raises(UserError, match=f"^--add: .*{re.escape(said)}.*Measure everything again, or leave --add out$"):
        extended(one, two)


def interrupted(options: Options) -> list[Variant]:
    raise KeyboardInterrupt


def plan(key: str, variants: Callable[[Options], Sequence[Variant]] = interrupted) -> Plan:
    return Plan(key, 1, [], variants)


def test_what_was_measured_before_ctrl_c_has_a_page_that_says_what_is_missing(
    tmp_path, photographs_only, monkeypatch, capsys
):
    case = made_up.Maker().case({"fastft": 100})

    def run(plan: Plan, options: Options) -> Iterator[Any]:
        measure = made_up.measure(plan.key, f"Measure {plan.key}", [case])
        try:
            list(plan.variants(options))
        except KeyboardInterrupt:
            case.setting["threads"] = 1
            yield measure
            raise
        yield measure

    def made(key: str) -> Plan:
        return plan(key, lambda options: [])

    monkeypatch.setattr(suite, "run_plan", run)
    plans = [made("decode.crop"), plan("loader.recipe"), plan("loader.cold")]
    monkeypatch.setattr(suite, "planned", lambda name: plans)
    given = ["bench", "all", "--count", "2", "--out", str(tmp_path)]
    assert main(given) == 130
    printed = capsys.readouterr().out
    missing = "2 measures are missing: loader.recipe (except 1 thread), loader.cold. "
    missing += "To add one: fastft bench loader.recipe --add"
    result, page = read_result(tmp_path / "all.json"), (tmp_path / "all.html").read_text()
    assert result.missing == ["loader.recipe", "loader.cold"]
    assert [m.key for m in result.measures] == ["decode.crop", "loader.recipe"]
    assert missing in page and missing in " ".join(printed.split()) and "Measure decode.crop" in page

    monkeypatch.setattr(suite, "planned", lambda name: [made("loader.recipe"), made("loader.cold")])
    assert main([*given, "--add", str(tmp_path / "all.json")]) == 0
    before = read_result(tmp_path / "all.json")
    monkeypatch.setattr(suite, "planned", lambda name: [plan("loader.recipe")])
    assert main([*given, "--add", str(tmp_path / "all.json")]) == 130, "a second time: the whole measure stays"
    assert read_result(tmp_path / "all.json").measures == before.measures
    assert not read_result(tmp_path / "all.json").missing and "incomplete" not in (tmp_path / "all.html").read_text()


def test_before_the_first_measure_ctrl_c_leaves_nothing(tmp_path, photographs_only, monkeypatch):
    monkeypatch.setattr(suite, "planned", lambda name: [plan("loader.recipe")])
    assert main(["bench", "all", "--count", "2", "--out", str(tmp_path)]) == 130
    assert list(tmp_path.iterdir()) == []
