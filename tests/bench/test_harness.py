"""The harness: turns alternate, the first round does not count, CPU time includes workers, failures are told apart."""

import os
import time
from typing import Any

import pytest

from beton_tools.base.errors import UserError
from fastft.bench import child, harness
from fastft.bench.harness import Contender, alternate, alternate_fresh
from fastft.bench.measure import CPU, CPU_RATE, WALL, WALL_RATE, Figure
from tests.bench import contenders

per_second, per_cpu_second = Figure("w", "Wall", WALL_RATE, WALL), Figure("c", "CPU", CPU_RATE, CPU)


def contender(who: str, function: str, **arguments: Any) -> Contender:
    return Contender(who, getattr(contenders, function), arguments)


def test_contenders_alternate_and_the_first_round_is_not_counted(tmp_path):
    log = tmp_path / "log"
    pair = [contender(name, "noting", name=name, log=str(log)) for name in ("A", "B")]
    rounds = alternate(pair, rounds=2, threads=1)
    ran = log.read_text().split()
    turns = [ran[k : k + 4] for k in range(0, len(ran), 4)]
    assert len(turns) == 3 and all([{*t[:2]}, {*t[2:]}] == [{"A.a", "B.a"}, {"A.b", "B.b"}] for t in turns)
    assert rounds.order == [[name[0] for name in turn[:2]] for turn in turns[1:]]
    assert per_second.case(rounds, "a", {}).order == rounds.order
    assert len(rounds.trials["A"]["a"]) == len(rounds.trials["B"]["b"]) == 2


def test_cpu_time_includes_workers_and_excludes_waiting():
    rounds = alternate(
        [contender("sleeps", "sleeping", seconds=0.2), contender("works", "worker", seconds=0.2)], 1, threads=1
    )
    slept, worked = rounds.trials["sleeps"]["a"][0], rounds.trials["works"]["a"][0]
    assert slept["wall"] >= 0.2 > 10 * slept["cpu"]
    assert worked["cpu"] >= 0.19
    wall, cpu = (figure.case(rounds, "a", {}).contenders for figure in (per_second, per_cpu_second))
    assert wall[0].rounds[0].value <= 50 and cpu[1].rounds[0].value <= 53


@pytest.mark.parametrize("run", [alternate, alternate_fresh])
def test_the_order_of_each_round_is_drawn_and_a_seed_repeats_it(run):
    orders = []
    for seed in (1, 1, 2):
        harness.drawing.seed(seed)
        orders.append(run([contender(name, "sleeping", seconds=0) for name in "AB"], 4, threads=1).order)
    assert orders[0] == orders[1] != orders[2]
    assert all(sorted(turn) == ["A", "B"] for turn in orders[0]) and len({tuple(turn) for turn in orders[0]}) == 2


def test_cpu_time_of_programs_outside_the_benchmark_is_recorded_with_each_round():
    pair = [contender("busy", "disturbed", seconds=0.5), contender("own", "worker", seconds=0.5)]
    found = per_second.case(alternate(pair, 1, threads=1), "a", {})
    foreign, own = (found.contender(name).rounds[0] for name in ("busy", "own"))
    assert foreign.cpu < 0.2 and foreign.foreign > 0.2  # cores
    assert own.cpu >= 0.49 and own.foreign * own.wall + own.cpu <= os.cpu_count() * own.wall + 0.1


def test_foreign_load_is_the_machines_busy_time_without_the_benchmarks(monkeypatch):
    machine, ours = iter([100.0, 101.5]), iter([10.0, 11.0])
    monkeypatch.setattr(child, "machine_seconds", lambda: next(machine))
    monkeypatch.setattr(child, "benchmark_seconds", lambda: next(ours))
    trial = child._trial(lambda: time.sleep(0.5) or 1)
    assert trial["foreign"] == pytest.approx(1.0, rel=0.2)


def test_every_contender_has_its_own_process_on_the_given_cores():
    pair = [contender("A", "described"), contender("B", "described")]
    trials = [alternate(pair, 1, threads=1).trials[name]["a"][0] for name in "AB"]
    assert [trial["cores"] for trial in trials] == [1, 1]
    assert trials[0]["pid"] != trials[1]["pid"]
    for trial in trials:
        with pytest.raises(ProcessLookupError):
            os.kill(trial["pid"], 0)


@pytest.mark.parametrize("function", ["failing_later", "dying", "killed", "empty", "missing"])
def test_a_failing_peer_is_skipped_and_the_others_continue(function):
    rounds = alternate([contender("peer", function), contender("fastft", "sleeping", seconds=0)], 1, threads=1)
    found = per_second.case(rounds, "a", {})
    assert [c.name for c in found.measured] == ["fastft"] and [c.name for c in found.skipped] == ["peer"]
    why = found.skipped[0].skipped
    reasons = {
        "failing_later": "ValueError: this peer breaks",
        "dying": "its process ended with exit code 9: libpeer: cannot map the shard",
        "killed": "its process was ended by SIGKILL, perhaps because memory ran out",
        "empty": "it delivered no images",
    }
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
