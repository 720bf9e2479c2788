"""The harness: turns alternate, the first round does not count, CPU time includes workers, failures are told apart."""

import os
from typing import Any

import pytest

from beton_tools.base.errors import UserError
from fastft.bench import harness
from fastft.bench.harness import Contender, alternate, alternate_fresh, case, per_cpu_second, per_second
from tests.bench import contenders


def contender(who: str, function: str, **arguments: Any) -> Contender:
    return Contender(who, getattr(contenders, function), arguments)


def test_contenders_alternate_and_the_first_round_is_not_counted(tmp_path):
    log = tmp_path / "log"
    pair = [contender(name, "noting", name=name, log=str(log)) for name in ("A", "B")]
    rounds = alternate(pair, rounds=2, threads=1)
    assert log.read_text().split() == 3 * ["A.a", "B.a", "A.b", "B.b"]
    assert len(rounds.trials["A"]["a"]) == len(rounds.trials["B"]["b"]) == 2


def test_cpu_time_includes_workers_and_excludes_waiting():
    rounds = alternate(
        [contender("sleeps", "sleeping", seconds=0.2), contender("works", "worker", seconds=0.2)], 1, threads=1
    )
    slept, worked = rounds.trials["sleeps"]["a"][0], rounds.trials["works"]["a"][0]
    assert slept["wall"] >= 0.2 > 10 * slept["cpu"]
    assert worked["cpu"] >= 0.19
    assert per_second(slept) <= 50 and per_cpu_second(worked) <= 53


def test_every_contender_has_its_own_process_on_the_given_cores():
    pair = [contender("A", "described"), contender("B", "described")]
    trials = [alternate(pair, 1, threads=1).trials[name]["a"][0] for name in "AB"]
    assert [trial["cores"] for trial in trials] == [1, 1]
    assert trials[0]["pid"] != trials[1]["pid"]
    for trial in trials:
        with pytest.raises(ProcessLookupError):
            os.kill(trial["pid"], 0)


@pytest.mark.parametrize("function", ["failing_later", "dying", "missing"])
def test_a_failing_peer_is_skipped_and_the_others_continue(function):
    rounds = alternate([contender("peer", function), contender("fastft", "sleeping", seconds=0)], 1, threads=1)
    found = case(rounds, "a", per_second, {})
    assert [c.name for c in found.measured] == ["fastft"] and [c.name for c in found.skipped] == ["peer"]
    why = found.skipped[0].skipped
    reasons = {"failing_later": "breaks", "dying": "ended with 9"}
    assert reasons.get(function, "not installed: pip install no-such-peer") in why


def test_when_fastft_fails_the_benchmark_fails():
    with pytest.raises(RuntimeError, match="this peer breaks"):
        alternate([contender("fastft", "failing_later")], 1, threads=1)


def test_input_that_fastft_refuses_is_a_user_error():
    with pytest.raises(UserError, match=r"^no image at all. Give one$"):
        alternate([contender("fastft", "refusing")], 1, threads=1)


def test_a_hanging_peer_is_killed_and_the_others_continue(monkeypatch):
    monkeypatch.setattr(harness, "TRIAL_SECONDS", 3)
    pair = [contender("peer", "sleeping", seconds=60), contender("fastft", "sleeping", seconds=0)]
    rounds = alternate(pair, 1, threads=1)
    assert rounds.skipped["peer"].startswith("no answer") and len(rounds.trials["fastft"]["a"]) == 1


def test_a_fresh_process_runs_every_round_that_must_not_be_warm():
    rounds = alternate_fresh([contender("A", "described"), contender("B", "missing")], 2, threads=1)
    first, second = rounds.trials["A"]["a"]
    assert first["pid"] != second["pid"] and rounds.skipped["B"] == "not installed: pip install no-such-peer"
