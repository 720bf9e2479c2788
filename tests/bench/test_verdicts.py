"""A comparison of benchmark results decides by a test over the rounds, and a command that fails can guard a branch."""

import json
import random
from pathlib import Path

import msgspec
import pytest

from fastft.bench.page.comparison import Comparison, compare, sentences
from fastft.bench.page.verdicts import Paired, Verdict, verdicts
from fastft.cli import main
from fastft.machine.bench_result import Contender, Result, Round, read_result, write_result
from tests.bench.made_up import result

PUBLISHED = Path(__file__).parents[2] / "benchmarks/results/amd-epyc.json"


def scaled(result: Result, factor: float) -> Result:
    """A copy in which every round of fastft is `factor` times as good."""
    copy = msgspec.convert(msgspec.to_builtins(result), Result)
    for measure in copy.measures:
        for own in filter(None, (case.contender() for case in measure.cases)):
            for r in own.rounds:
                r.value *= factor if measure.better == "higher" else 1 / factor
    return copy


def paired(first: list[float], last: list[float], better: str = "higher") -> Paired:
    return Paired.of(*(Contender(name="fastft", rounds=[Round(value=v) for v in x]) for x in (first, last)), better)


def noisy(rng: random.Random, ratio: float, spread: float, rounds: int = 5) -> Paired:
    first, last = ([scale * rng.lognormvariate(0, spread) for _ in range(rounds)] for scale in (1000, 1000 * ratio))
    return paired(first, last)


@pytest.mark.parametrize(("factor", "outcome"), [(0.85, "worse"), (1 / 0.85, "better")])
def test_a_uniform_change_of_15_percent_is_seen_in_every_figure(factor, outcome):
    published = read_result(PUBLISHED)
    comparison = compare([published, scaled(published, factor)], threshold=0.95)
    assert len(comparison.changes) > 40
    assert {c.verdict.outcome for c in comparison.changes} == {outcome}
    assert all(c.verdict.ratio == pytest.approx(factor) for c in comparison.changes)
    assert len(comparison.below) == (len(comparison.changes) if factor < 1 else 0)


def test_ranges_that_overlap_are_no_reason_to_call_figures_the_same():
    first, last = [100.0, 150.0, 90.0, 120.0, 140.0], [87.0, 128.0, 78.0, 101.0, 121.0]
    assert max(last) > min(first)
    assert verdicts([paired(first, last)])[0].outcome == "worse"
    assert verdicts([paired(first, last, "lower")])[0].outcome == "better"


def test_two_measurements_of_the_same_are_seldom_told_apart():
    """In 40 figures at 5 % each, 87 % of all pages would name at least one."""
    rng, pages, wrong = random.Random(0), 40, 0
    for _ in range(pages):
        wrong += any(v.outcome != "cannot tell" for v in verdicts([noisy(rng, 1.0, 0.08) for _ in range(40)]))
    assert wrong / pages <= 0.15


def test_a_guard_finds_a_loss_in_noise_and_does_not_fail_without_one():
    rng = random.Random(1)
    lost, equal = ([noisy(rng, ratio, 0.05) for _ in range(40)] for ratio in (0.85, 1.0))
    assert sum(bool(v.below) for v in verdicts(lost, 0.95)) >= 20
    assert not any(v.below for v in verdicts(equal, 0.95))
    assert not any(v.below for v in verdicts(lost, 0.80))


def test_the_rounds_that_it_says_would_be_enough_are_enough():
    rng = random.Random(2)
    unknown = verdicts([paired([100, 118, 90, 111, 85], [96, 108, 95, 98, 84])])[0]
    assert (
        unknown.outcome == "cannot tell"
        and str(unknown) == f"cannot tell (would need about {unknown.rounds_needed} rounds)"
    )
    seen = paired([100, 118, 90, 111, 85], [96, 108, 95, 98, 84])
    again = [Paired([rng.gauss(seen.mean, seen.deviation) for _ in range(unknown.rounds_needed)]) for _ in range(100)]
    assert 65 <= sum(p.p_value() <= 0.05 for p in again) <= 95  # planned for 80 %


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        ([1.0], [2.0], "cannot tell (one round or none, measure 5)"),
        ([0.0, 1.0], [1.0, 1.0], "cannot tell"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], "cannot tell (the rounds are equal)"),
        ([1.0, 2.0, 1.5], [1.0001, 1.9, 1.58], "cannot tell (would need more than 1,000 rounds)"),
        ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], "better"),
    ],
)
def test_what_cannot_be_decided_says_what_is_needed(first, last, said):
    (verdict,) = verdicts([paired(first, last)], 0.95)
    assert str(verdict) == said and isinstance(verdict, Verdict) and not verdict.below


# the command ----------------------------------------------------------------------------------------------------------


def test_the_command_fails_below_a_ratio_and_names_what_lost(tmp_path, capsys):
    """As a workflow calls it: once for a branch that lost nothing, once for one that lost 15 %."""
    main_json, branch = tmp_path / "main.json", tmp_path / "branch.json"
    write_result(main_json, read_result(PUBLISHED))
    command = ["report", str(main_json), str(branch), "--fail-below", "0.95"]
    write_result(branch, scaled(read_result(PUBLISHED), 0.99))
    assert main(command) == 0
    assert "significantly below 0.95 of the first result: 0" in capsys.readouterr().out
    write_result(branch, scaled(read_result(PUBLISHED), 0.85))
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert "below: Loader, whole recipe, one thread" in printed and "0.850x" in printed
    assert "0 are better and 41 are worse on B than on A." in printed
    assert (tmp_path / "comparison.html").exists() and printed.endswith(f"{tmp_path / 'comparison.html'}\n")


def test_json_has_every_figure_with_its_interval_and_what_else_differs(tmp_path, capsys):
    one, other = result(), scaled(result(cpu="another"), 0.85)
    other.measures = other.measures[1:]
    one.images.sha256, other.images.sha256 = "ab" * 32, "cd" * 32
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, each in zip(paths, (one, other), strict=True):
        write_result(path, each)
    assert main(["report", *map(str, paths), "--json", "--fail-below", "90%"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["failed"] and found["files"] == [str(p) for p in paths] and found["page"].endswith("comparison.html")
    assert found["worse"] == found["below"] == len(found["figures"]) and found["better"] == found["cannot_tell"] == 0
    assert found["missing"] == ["decode.crop, 500 px files, 224 px, batch 64"]
    assert "another processor: made-up processor and another" in found["remarks"]
    assert "other images: their checksums differ" in found["remarks"]
    for row in found["figures"]:
        assert row["low"] <= row["ratio"] <= row["high"] < 0.9 and row["rounds"] == 5 and row["verdict"] == "worse"


def test_a_machine_that_became_slower_is_said_because_the_other_libraries_did_too():
    def slower(factor: float, version: str | None = None) -> Comparison:
        last = read_result(PUBLISHED)
        for one in (c for m in last.measures if m.better == "higher" for case in m.cases for c in case.contenders):
            one.version = version or one.version
            for r in one.rounds:
                r.value *= factor
        return compare([read_result(PUBLISHED), last])

    (said,) = slower(0.9).remarks
    assert "are 0.90 times as fast in the last file" in said and said.endswith("the machine itself was probably slower")
    assert any(said in sentence for sentence in sentences(slower(0.9)))
    assert slower(1.1).drift.endswith("probably faster")
    assert slower(0.98).drift == slower(0.9, "another").drift == ""
    assert compare([read_result(PUBLISHED), scaled(read_result(PUBLISHED), 0.85)]).drift == ""


def test_versions_of_libraries_and_python_that_differ_are_said():
    last = read_result(PUBLISHED)
    last.machine.python, last.machine.libraries["torch"] = "3.14.0", "0.1"
    said = "; ".join(compare([read_result(PUBLISHED), last]).remarks)
    assert "another version of Python: " in said and "and 3.14.0" in said
    assert "other versions: torch " in said and "and 0.1" in said


def test_what_means_nothing_is_not_compared_with_a_threshold(tmp_path, refused):
    quick = result()
    quick.quick = True
    write_result(tmp_path / "a.json", quick)
    pair = [str(tmp_path / "a.json")] * 2
    assert "a quick run, whose figures mean nothing" in refused(["report", *pair, "--fail-below", "0.95"])
    assert "Give two JSON files" in refused(["report", pair[0], "--fail-below", "0.95"])
    assert "Give two JSON files" in refused(["report", pair[0], "--json"])
    assert not (tmp_path / "comparison.html").exists()
