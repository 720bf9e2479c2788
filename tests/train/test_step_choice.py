"""How a step is computed is chosen by measurement: the fastest candidate whose numbers are eager's, within a time limit."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from beton_tools.base.errors import UserError
from fastft.recipe import load_recipe
from fastft.run.checkpoint import list_checkpoints, read_checkpoint
from fastft.run.run_directory import read_metrics
from fastft.train import step_measure
from fastft.train.step_cache import cache_file, load_trials, store_trials
from fastft.train.step_choice import (
    MODES,
    Decision,
    StepChoice,
    StepTrial,
    decide,
    fastest,
    refuse_impossible,
    requested_step,
    stored_choice,
)
from fastft.train.step_measure import measure_in_process, read_trials
from fastft.train.step_trials import Request, TrialRunner
from tests.train.runs import differing, end, run

EAGER, BATCHED = StepChoice(), StepChoice("eager", "batched")
GRAPH, COMPILED = StepChoice("graph", "batched"), StepChoice("compile", "batched")
WRONG, NOT_FINITE = torch.tensor([1.0, 1.0, 1.1]), torch.tensor([1.0, 1.0, 1.0, torch.nan])
RIGHT = {"logits": torch.ones(4), "weight": torch.ones(3)}


@dataclass
class Candidate:
    """A stub: seconds to build and of each call, its numbers, an error."""

    build: float = 0.0
    call: float = 0.1
    numbers: Mapping[str, Tensor] = field(default_factory=lambda: RIGHT)
    error: Exception | None = None


def try_all(candidates: dict[StepChoice, Candidate], seconds: float = 60.0) -> list[StepTrial]:
    """The trials of stubs on a clock that only they advance."""
    now = [0.0]

    def build(choice: StepChoice) -> Callable:
        stub = candidates[choice]
        now[0] += stub.build
        if stub.error is not None:
            raise stub.error

        class Pass:
            def __call__(self) -> None:
                now[0] += stub.call

            def numbers(self) -> Mapping[str, Tensor]:
                return stub.numbers

        return Pass()

    kernels = [choice.attention for choice in candidates if choice.mode == "eager"]
    modes = [choice.mode for choice in candidates if choice.mode != "eager"]
    reports: list = []
    runner = TrialRunner(
        build, kernels, modes, tolerance=0.01, deadline=seconds, clock=lambda: now[0],
        report=lambda event, values: reports.append((event, values)),
    )  # fmt: skip
    trials = runner.run()
    assert [values for event, values in reports if event == "ended"] == [trial.as_dict() for trial in trials]
    return trials


def reasons(trials: list[StepTrial]) -> dict[StepChoice, str | None]:
    return {trial.choice: trial.reason for trial in trials}


# the trials ----------------------------------------------------------------------------------------------------------


def test_the_fastest_candidate_wins_and_modes_use_the_fastest_attention() -> None:
    trials = try_all({
        EAGER: Candidate(call=0.2), BATCHED: Candidate(call=0.15), GRAPH: Candidate(call=0.14), COMPILED: Candidate(call=0.1),
    })  # fmt: skip
    assert fastest(trials) == COMPILED
    assert [round(trial.milliseconds or 0) for trial in trials] == [200, 150, 140, 100]


def test_a_difference_within_noise_changes_nothing() -> None:
    assert fastest(try_all({EAGER: Candidate(call=0.100), BATCHED: Candidate(call=0.099)})) == EAGER
    assert fastest(try_all({EAGER: Candidate(call=0.100), BATCHED: Candidate(call=0.097)})) == BATCHED


@pytest.mark.parametrize(
    ("stub", "reason"),
    [
        (Candidate(error=RuntimeError("no kernel image\nfor execution")), "RuntimeError: no kernel image"),
        (Candidate(error=torch.OutOfMemoryError("CUDA out of memory")), "OutOfMemoryError: CUDA out of memory"),
        (Candidate(call=0.01, numbers={**RIGHT, "weight": WRONG}), "weight differs by 5.8% from eager, limit 1.0%"),
        (Candidate(call=0.01, numbers={**RIGHT, "logits": NOT_FINITE}), "NaN or Inf in logits"),
        (Candidate(call=0.01, numbers={"logits": RIGHT["logits"]}), "no weight"),
        (Candidate(build=31.0, call=0.01), "not finished after its 30 s"),
        (Candidate(call=8.0), "not finished after its 30 s"),
    ],
)  # fmt: skip
def test_a_candidate_that_fails_differs_or_takes_too_long_is_dropped(stub: Candidate, reason: str) -> None:
    trials = try_all({EAGER: Candidate(call=0.0), BATCHED: stub})
    assert fastest(trials) == EAGER
    if reason.startswith("not finished"):  # alone after eager it may use all of the time
        trials = try_all({EAGER: Candidate(call=0.0), BATCHED: stub, COMPILED: Candidate()})
    assert reasons(trials)[BATCHED] == reason


def test_a_gradient_that_is_zero_in_eager_must_be_zero() -> None:
    zero = {**RIGHT, "weight": torch.zeros(3)}
    assert (
        reasons(try_all({EAGER: Candidate(numbers=zero), BATCHED: Candidate(numbers=zero)}))[BATCHED] is None
    )
    assert "weight differs" in str(
        reasons(try_all({EAGER: Candidate(numbers=zero), BATCHED: Candidate()}))[BATCHED]
    )


def test_the_deadline_holds_between_candidates() -> None:
    """Eager leaves 1 s of 60; the last candidate is not begun when nothing is left."""
    slow = {EAGER: Candidate(call=3.9), BATCHED: Candidate(call=8.0), COMPILED: Candidate(call=9.0)}
    assert reasons(try_all(slow, seconds=60))[BATCHED] == "not finished after its 20 s"
    late = reasons(try_all({**slow, BATCHED: Candidate(build=60.0)}, seconds=60))
    assert late[BATCHED] == "not finished after its 20 s"
    assert late[StepChoice("compile")] == "no time left"


def test_without_eager_nothing_is_compared() -> None:
    trials = try_all({EAGER: Candidate(error=RuntimeError("broken")), BATCHED: Candidate()})
    assert [trial.choice for trial in trials] == [EAGER]
    assert fastest(trials) == StepChoice()


# the process that runs them ------------------------------------------------------------------------------------------


def request(**changes) -> Request:
    values = {
        "recipe": load_recipe("final_b16").as_dict(), "arch": {}, "device": "cpu", "dtype": "float32", "half_residual": False,
        "micro_batch": 4, "processes": 1, "threads": 1, "reserve_bytes": 0, "seconds": 60.0,
    }  # fmt: skip
    return Request(**{**values, **changes})


START = """
import json, os, sys, time
out = open(sys.argv[2], "a")
def say(**event):
    out.write(json.dumps(event) + chr(10))
    out.flush()
"""


def child(text: str) -> tuple[str, ...]:
    """A program that runs in place of the trials, with request and results files as arguments."""
    return sys.executable, "-c", START + text


ENDED = (
    f"say(started={{'mode': 'eager', 'attention': 'auto'}}); say(ended={StepTrial(EAGER, 5.0).as_dict()})\n"
)
STARTED = "say(started={'mode': 'compile', 'attention': 'auto'})\n"


def test_a_compilation_that_does_not_end_is_killed_at_the_limit() -> None:
    trials = measure_in_process(
        request(seconds=1.5), lambda: None, child(ENDED + STARTED + "time.sleep(600)")
    )
    assert trials == [StepTrial(EAGER, 5.0), StepTrial(StepChoice("compile"), None, "stopped after 2 s")]


def test_a_compiler_that_crashes_is_dropped_with_its_last_line() -> None:
    crash = "print('ptxas fatal: sm_70 is not defined', file=sys.stderr, flush=True); os.abort()"
    trials = measure_in_process(request(), lambda: None, child(ENDED + STARTED + crash))
    assert trials[0] == StepTrial(EAGER, 5.0)
    assert trials[1].reason == "its process ended with code -6: ptxas fatal: sm_70 is not defined"


def test_a_process_that_cannot_start_leaves_eager() -> None:
    trials = measure_in_process(request(), lambda: None, ("/no/such/python",))
    assert fastest(trials) == EAGER
    assert "FileNotFoundError" in str(trials[0].reason)


def test_an_interrupt_ends_the_process_at_once(tmp_path: Path) -> None:
    def interrupt() -> None:
        if (tmp_path / "started").exists():
            raise KeyboardInterrupt

    text = f"""
open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
open({str(tmp_path / "started")!r}, "w")
time.sleep(600)
"""
    with pytest.raises(KeyboardInterrupt):
        measure_in_process(request(), interrupt, child(text))
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


def test_a_line_that_was_cut_short_is_left_out() -> None:
    lines = [
        json.dumps({"started": {"mode": "eager", "attention": "auto"}}),
        json.dumps({"ended": StepTrial(EAGER, 5.0).as_dict()}),
    ]
    assert read_trials("\n".join(lines), "stopped") == [StepTrial(EAGER, 5.0)]
    assert read_trials(f"{lines[0]}\n{lines[1][:20]}", "stopped") == [StepTrial(EAGER, None, "stopped")]
    assert read_trials("", "stopped") == [StepTrial(EAGER, None, "stopped")]


# the decision --------------------------------------------------------------------------------------------------------

MEASURED = [
    StepTrial(EAGER, 9.0),
    StepTrial(COMPILED, 5.0),
    StepTrial(GRAPH, None, "CUDA error: out of memory"),
]


def decided(
    requested: str,
    *,
    stored: StepChoice | None = None,
    on_gpu: bool = True,
    cached: list[StepTrial] | None = None,
) -> tuple[Decision, int]:
    """The decision, and how often was measured."""
    calls: list[int] = []
    decision = decide(
        requested,
        stored,
        on_gpu,
        load=lambda: cached,
        measure=lambda: calls.append(1) or MEASURED,  # type: ignore[func-returns-value]
    )
    return decision, len(calls)


def test_a_gpu_is_measured_once_and_a_cpu_only_if_requested() -> None:
    assert decided("auto") == (Decision(COMPILED, "measurement", tuple(MEASURED)), 1)
    assert decided("auto", on_gpu=False) == (Decision(EAGER, "default"), 0)
    assert decided("measure", on_gpu=False)[0].choice == COMPILED


def test_a_resumed_run_takes_the_recorded_choice_without_measuring() -> None:
    for requested in ("auto", "measure"):
        assert decided(requested, stored=GRAPH) == (Decision(GRAPH, "checkpoint"), 0)
    assert decided("eager", stored=GRAPH) == (Decision(EAGER, "recipe"), 0)


def test_the_cache_spares_auto_a_measurement() -> None:
    cached = [StepTrial(EAGER, 3.0), StepTrial(GRAPH, 1.0)]
    assert decided("auto", cached=cached) == (Decision(GRAPH, "cache", tuple(cached)), 0)
    assert decided("measure", cached=cached)[0].origin == "measurement"


@pytest.mark.parametrize("mode", MODES)
def test_a_recipe_that_names_a_mode_is_obeyed(mode: str) -> None:
    assert decided(mode, stored=GRAPH, cached=MEASURED) == (Decision(StepChoice(mode), "recipe"), 0)


def test_a_recorded_choice_counts_only_on_its_device_and_if_it_is_known() -> None:
    stored = {"mode": "compile", "attention": "batched", "device": "V100"}
    assert stored_choice(stored, "V100") == COMPILED
    assert stored_choice(stored, "H100") is None
    assert stored_choice({**stored, "mode": "magic"}, "V100") is None
    assert stored_choice({**stored, "attention": "magic"}, "V100") is None
    assert stored_choice(None, "V100") is None


def test_one_line_says_what_was_chosen_and_how_the_others_did() -> None:
    line = Decision(COMPILED, "measurement", tuple(MEASURED)).describe()
    assert line == (
        "step: compile with batched attention (from measurement): 5.0 ms per micro-batch; eager 9.0 ms, "
        "graph with batched attention dropped (CUDA error: out of memory)"
    )
    assert not Decision(EAGER, "default").is_worth_a_line
    assert (
        Decision(COMPILED, "checkpoint").describe()
        == "step: compile with batched attention (from checkpoint)"
    )


# options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("older", "step"), [("on", "compile"), ("off", "eager"), ("auto", "auto")])
def test_the_older_option_means_the_same(older: str, step: str) -> None:
    assert requested_step(load_recipe("final_b16", [f"--train.compile={older}"])) == step


def test_both_options_at_once_are_refused() -> None:
    with pytest.raises(UserError, match=r"train\.compile is the older form of train\.step"):
        load_recipe("final_b16", ["--train.compile=on", "--train.step=eager"])


@pytest.mark.parametrize(
    ("options", "on_gpu", "processes", "reason"),
    [
        ([], False, 1, "needs a GPU"),
        ([], True, 2, "does not average gradients over processes"),
        (["--train.grad_checkpointing=true"], True, 1, "does not work with train.grad_checkpointing"),
    ],
)
def test_a_graph_that_cannot_be_is_refused(
    options: list[str], on_gpu: bool, processes: int, reason: str
) -> None:
    with pytest.raises(UserError, match=f"train.step is graph, which {reason}"):
        refuse_impossible(load_recipe("final_b16", ["--train.step=graph", *options]), on_gpu, processes)
    refuse_impossible(load_recipe("final_b16", options), on_gpu, processes)


# the cache -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def silent(text: str) -> None:
    raise AssertionError(text)


def test_what_is_stored_is_read_for_the_same_key_only(cache: Path) -> None:
    store_trials({"device": "V100", "micro_batch": 64}, MEASURED)
    assert load_trials({"device": "V100", "micro_batch": 64}, silent) == MEASURED
    assert load_trials({"device": "V100", "micro_batch": 32}, silent) is None
    assert [path.suffix for path in cache.rglob("*") if path.is_file()] == [".json"]


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "[" * 100_000, '{"key": {}, "trials": []}', '{"key": {"a": 1}, "trials": [1]}',
        '{"key": {"a": 1}, "trials": [{"mode": "magic", "attention": "auto", "milliseconds": 1}]}',
        '{"key": {"a": 1}, "trials": [{"mode": "eager", "attention": "auto", "milliseconds": "fast"}]}',
        "\x00" * 2_000_000,
    ],
)  # fmt: skip
def test_a_damaged_file_is_ignored_with_a_warning(cache: Path, text: str) -> None:
    key, said = {"a": 1}, []
    store_trials(key, MEASURED)
    cache_file(key).write_text(text)
    assert load_trials(key, said.append) is None
    assert len(said) == 1
    assert "which is damaged" in said[0]
    store_trials(key, MEASURED)
    assert load_trials(key, silent) == MEASURED


def test_a_cache_directory_that_cannot_be_used_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    store_trials({"a": 1}, MEASURED)
    assert load_trials({"a": 1}, silent) is None


def test_everything_that_changes_the_speed_is_in_the_key() -> None:
    base = step_measure.cache_key(request(), "V100")
    other = [
        step_measure.cache_key(request(), "H100"),
        *(step_measure.cache_key(request(**{name: value}), "V100") for name, value in {
            "micro_batch": 8, "dtype": "bfloat16", "half_residual": True, "processes": 2, "arch": {"width": 8}, "threads": 2,
        }.items()),
        *(step_measure.cache_key(request(recipe=load_recipe("final_b16", [option]).as_dict()), "V100") for option in (
            "--model.drop_path=0.1", "--model.trainable_layers=3", "--augment.mixup=0.5", "--train.grad_checkpointing=true",
        )),
    ]  # fmt: skip
    assert len({json.dumps(key) for key in (base, *other)}) == 1 + len(other)
    moved = request(
        recipe=load_recipe("final_b16", ["--model.weights=elsewhere.pt", "--train.seed=5"]).as_dict()
    )
    assert step_measure.cache_key(moved, "V100") == base


# training ------------------------------------------------------------------------------------------------------------


def start_line(folder: Path) -> dict:
    return [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "start"][-1]


def recorded(folder: Path) -> dict:
    return read_checkpoint(list_checkpoints(folder / "checkpoints")[-1]).state["progress"]["step_choice"]


def test_a_cpu_measures_nothing_by_default(tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(step_measure, "measure_in_process", None)
    run(tiny, tmp_path / "run")
    assert {key: start_line(tmp_path / "run")[key] for key in ("step_mode", "step_attention", "step_origin")} == {
        "step_mode": "eager", "step_attention": "auto", "step_origin": "default",
    }  # fmt: skip
    assert {**recorded(tmp_path / "run"), "device": ""} == {
        "mode": "eager",
        "attention": "auto",
        "device": "",
    }


def test_a_run_records_what_was_measured_and_its_resume_takes_it(
    tiny, tmp_path: Path, monkeypatch, cache: Path
) -> None:
    """The measurement is a stub; the choice, another attention kernel, is real."""
    measured: list[Request] = []
    found = [StepTrial(EAGER, 2.0), StepTrial(BATCHED, 1.0), StepTrial(COMPILED, None, "broken")]
    monkeypatch.setattr(
        step_measure, "measure_in_process", lambda request, on_wait: measured.append(request) or found
    )
    run(tiny, tmp_path / "whole", train__step="measure")
    run(tiny, tmp_path / "parts", train__step="measure", schedule__stop_epoch="1")
    assert len(measured) == 2
    run(tiny, tmp_path / "parts", train__step="measure")
    assert len(measured) == 2
    first, last = start_line(tmp_path / "whole"), start_line(tmp_path / "parts")
    assert (first["step_attention"], first["step_origin"], len(first["step_trials"])) == (
        "batched",
        "measurement",
        3,
    )
    assert first["step_trials"][2]["reason"] == "broken"
    assert (last["step_attention"], last["step_origin"], last["step_trials"]) == ("batched", "checkpoint", [])
    assert recorded(tmp_path / "parts")["attention"] == "batched"
    assert differing(end(tmp_path / "whole"), end(tmp_path / "parts")) == []


def test_measuring_changes_neither_weights_nor_random_numbers(
    tiny, tmp_path: Path, monkeypatch, cache: Path
) -> None:
    """The real process runs; it would take 'batched' or the compiled step if those were faster, so eager is fixed."""
    monkeypatch.setattr(
        step_measure, "decide", lambda *_, measure, **__: Decision(EAGER, "measurement", tuple(measure()))
    )
    monkeypatch.setattr(step_measure, "MEASURE_SECONDS", 5.0)
    run(tiny, tmp_path / "measured", train__step="measure", schedule__stop_epoch="1")
    run(tiny, tmp_path / "plain", schedule__stop_epoch="1")
    assert start_line(tmp_path / "measured")["step_trials"]
    assert differing(end(tmp_path / "measured"), end(tmp_path / "plain")) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_cpu_measures_eager_against_the_compiler(tiny, tmp_path: Path, monkeypatch, cache: Path) -> None:
    """Both really run, in another process; the training then takes the faster one, and a second one asks the cache."""
    monkeypatch.setattr(step_measure, "MEASURE_SECONDS", 900.0)
    run(tiny, tmp_path / "run", train__step="measure", schedule__stop_epoch="1")
    trials = {(t["mode"], t["attention"]): t for t in start_line(tmp_path / "run")["step_trials"]}
    assert {mode for mode, _ in trials} == {"eager", "compile"}
    assert all(trial["milliseconds"] > 0 and trial["reason"] is None for trial in trials.values())
    best = min(trials.values(), key=lambda trial: trial["milliseconds"])
    chosen = start_line(tmp_path / "run")
    assert (
        trials[chosen["step_mode"], chosen["step_attention"]]["milliseconds"] <= 1.02 * best["milliseconds"]
    )
    assert len(list(cache.rglob("steps/*.json"))) == 1


def test_ranks_get_the_choice_of_process_0(monkeypatch) -> None:
    """A stub of two processes: the second one measures nothing and returns what it receives."""
    world = SimpleNamespace(
        is_main=False, broadcast=lambda value: Decision(COMPILED, "measurement") if value is None else value
    )
    decision = step_measure.choose_step(
        None, None, world, None, 4, None, loader_bytes=0, say=silent, on_wait=silent
    )  # type: ignore[arg-type]
    assert decision.choice == COMPILED
