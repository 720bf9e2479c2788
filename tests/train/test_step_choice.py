"""How a step is computed: the candidates, their comparison with eager, and the choice that a run records and repeats."""

import itertools
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from msgspec import structs
from torch import Tensor
from torch import multiprocessing as mp

from beton_tools.base.errors import UserError
from fastft.machine import distributed
from fastft.machine.distributed import World
from fastft.machine.exits import GpuLost
from fastft.machine.precision import Precision
from fastft.model import build_classifier
from fastft.model.timm_arch import load_timm_arch
from fastft.model.timm_tower import build_timm_classifier
from fastft.optim import build_adamw, layer_groups, optimizer_groups
from fastft.recipe import load_recipe
from fastft.run.checkpoint import StoredStep, list_checkpoints, read_checkpoint
from fastft.run.trial_record import TrialRecord
from fastft.train import step as step_module
from fastft.train import step_choice
from fastft.train.step import MODES, Step, StepChoice
from fastft.train.step_choice import (
    TOLERANCE,
    Decision,
    StepTrial,
    candidate_modes,
    choose_step,
    fastest,
    refuse_impossible,
    run_trials,
    stored_choice,
)
from tests.model import fused_reference
from tests.model.test_tower import small_arch
from tests.train.runs import differing, end, logged, run
from tests.train.test_step_graph import StubGraph, train
from tests.train.test_sync import CPU

EAGER, BATCHED = StepChoice(), StepChoice("eager", "batched")
GRAPH, COMPILED = StepChoice("graph", "batched"), StepChoice("compile", "batched")
WRONG, NOT_FINITE = torch.tensor([1.0, 1.0, 1.1]), torch.tensor([1.0, 1.0, 1.0, torch.nan])
HALF_ON = ("--train.amp=fp16", "--train.half_residual=on")
RIGHT = {"logits": torch.ones(4), "weight": torch.ones(3)}
MEASURED = (StepTrial(EAGER, 9.0), StepTrial(COMPILED, 5.0), StepTrial(GRAPH, None, "CUDA error: out of memory"))
FP32, HALF = Precision(torch.float32, "cpu"), Precision(torch.bfloat16, "cpu", half_residual=True)


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace as torch.compile does, and run the graphs without generating code, which takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(
        torch.nn.Module, "compile",
        lambda self, **how: setattr(self, "_compiled_call_impl", torch.compile(self._call_impl, **how)),
    )  # fmt: skip
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()


def unique_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


# compiling block by block ---------------------------------------------------------------------------------------------


def plain_step(precision: Precision, world: World | None = None, **options) -> Step:
    """Without stochastic depth, whose rates differ between blocks."""
    torch.manual_seed(0)
    model = build_classifier(small_arch(), 5)
    groups = optimizer_groups(model, layer_groups(model, 3, 0.6, 0.05))
    optimizer = build_adamw(groups, betas=(0.9, 0.999), eps=1e-8)
    return Step(model, optimizer, None, world or World(0, 1, 0, CPU), precision, **options)


def largest_difference(found: list[Tensor], want: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm().clamp_min(1e-6)) for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("precision", [FP32, HALF], ids=["fp32", "half"])
def test_all_blocks_share_one_graph(precision, quick_compiler):
    """Also in a second training of the same process, and evaluation compiles nothing."""
    for _ in range(2):
        step = plain_step(precision, accumulation=2)
        step.connect(StepChoice("compile"))
        found = train(step, 2)
        with step.evaluation_context(), torch.inference_mode():
            step.model.eval()(torch.randn(7, 3, 32, 32))
        assert unique_graphs() == 1
    want = plain_step(precision, accumulation=2)
    want.connect(EAGER)
    assert largest_difference(found, train(want, 2)) < (1e-5 if precision is FP32 else 2e-2)


def test_autotuning_is_inductors(monkeypatch):
    modes: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, mode, **_: modes.append(mode))
    plain_step(FP32).connect(StepChoice("autotune"))
    assert len(modes) == small_arch().layers and set(modes) == {"max-autotune-no-cudagraphs"}


def test_a_vit_of_timm_is_compiled_by_its_blocks(quick_compiler):
    model = build_timm_classifier(load_timm_arch("vit_tiny_patch16_224").at(32), 5)
    assert len(model.visual.blocks) == 12
    for block in model.visual.blocks:
        block.compile(dynamic=False)
    model.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    assert unique_graphs() == 1


def first_gradients(step: Step, rank: int, micro_batches: int) -> list[Tensor]:
    """Loss and averaged gradients of a step on random images, others in each process. AdamW would enlarge their rounding."""
    generator, size = torch.Generator().manual_seed(rank), step.model.visual.arch.image_size
    step.model.train()
    for k in range(micro_batches):
        images = torch.randn(4, 3, size, size, generator=generator).to(step.precision.dtype)
        labels = torch.randint(5, (4,), generator=generator)
        step.micro_batch(images, labels, None, step=0, last=k == micro_batches - 1)
    return [step.loss_sum.clone(), *(p.grad.clone() for p in step.trained.parameters() if p.grad is not None)]


def distributed_gradients(rank: int, results: str, cases: list) -> None:
    """In one of two processes: for each case `first_gradients` of an eager, a compiled and a graphed step."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{results}.store", rank=rank, world_size=2)
    distributed.DistributedDataParallel = partial(distributed.DistributedDataParallel, bucket_cap_mb=0.02)
    step_module.GraphedPass = partial(step_module.GraphedPass, capture=StubGraph().capture)
    found = []
    with World(rank, 2, rank, CPU) as world:
        for precision, accumulation in cases:
            for mode in ("eager", "compile", "graph"):
                step = plain_step(precision, world, accumulation=accumulation)
                step.connect(StepChoice(mode))
                found.append(first_gradients(step, rank, accumulation))
    if rank == 0:
        torch.save(found, results)


@pytest.mark.slow  # `test_all_blocks_share_one_graph` compares the gradients of one process
def test_compiled_and_graphed_processes_have_the_gradients_of_eager_ones(tmp_path):
    """Two processes, several buckets of gradients, micro-batches that accumulate: equal to rounding."""
    results, cases = tmp_path / "results", list(itertools.product([FP32, HALF], [1, 2]))
    mp.spawn(distributed_gradients, (str(results), cases), nprocs=2)
    found = torch.load(results)
    for (precision, _), eager, compiled, graphed in zip(cases, found[::3], found[1::3], found[2::3], strict=True):
        assert len(eager) > 40 and largest_difference(compiled, eager) < TOLERANCE[precision.dtype] / 2
        assert largest_difference(graphed, eager) < (1e-5 if precision is FP32 else TOLERANCE[precision.dtype] / 2)


# the trials -----------------------------------------------------------------------------------------------------------


@dataclass
class Candidate:
    """A stub: seconds of each call, its numbers, an error."""

    call: float = 0.1
    numbers: Mapping[str, Tensor] = field(default_factory=lambda: RIGHT)
    error: Exception | None = None


def try_all(candidates: dict[StepChoice, Candidate], record: TrialRecord | None = None, device=CPU) -> list[StepTrial]:
    """The trials of stubs on a clock that only they advance."""
    now = [0.0]

    def build(choice: StepChoice):
        stub = candidates[choice]
        if stub.error is not None:
            raise stub.error

        def call() -> Mapping[str, Tensor]:
            now[0] += stub.call
            return stub.numbers

        return call

    kernels = [choice.attention for choice in candidates if choice.mode == "eager"]
    modes = [choice.mode for choice in candidates if choice.mode != "eager"]
    return run_trials(build, kernels, modes, 0.01, device=device, record=record, clock=lambda: now[0])


def test_the_fastest_candidate_wins_and_modes_use_the_fastest_attention():
    trials = try_all({
        EAGER: Candidate(call=0.2), BATCHED: Candidate(call=0.15), GRAPH: Candidate(call=0.14), COMPILED: Candidate(call=0.1),
    })  # fmt: skip
    assert fastest(trials) == COMPILED
    assert [round(trial.milliseconds or 0) for trial in trials] == [200, 150, 140, 100]
    assert fastest(try_all({EAGER: Candidate(call=0.100), BATCHED: Candidate(call=0.099)})) == EAGER  # noise
    assert fastest(try_all({EAGER: Candidate(call=0.100), BATCHED: Candidate(call=0.097)})) == BATCHED


@pytest.mark.parametrize(
    ("stub", "reason"),
    [
        (Candidate(error=RuntimeError("no kernel image\nfor execution")), "RuntimeError: no kernel image"),
        (Candidate(error=torch.OutOfMemoryError("CUDA out of memory")), "OutOfMemoryError: CUDA out of memory"),
        (Candidate(call=0.01, numbers={**RIGHT, "weight": WRONG}), "weight differs by 5.8% from eager, limit 1.0%"),
        (Candidate(call=0.01, numbers={**RIGHT, "logits": NOT_FINITE}), "NaN or Inf in logits"),
        (Candidate(call=0.01, numbers={"logits": RIGHT["logits"]}), "no weight"),
    ],
)  # fmt: skip
def test_a_candidate_that_fails_or_differs_is_dropped(stub, reason):
    trials = try_all({EAGER: Candidate(), BATCHED: stub})
    assert fastest(trials) == EAGER
    assert trials[1].reason == reason


def test_without_eager_nothing_is_compared():
    trials = try_all({EAGER: Candidate(error=RuntimeError("broken")), BATCHED: Candidate()})
    assert [trial.choice for trial in trials] == [EAGER]
    assert fastest(trials) == StepChoice()


def test_a_candidate_that_ended_the_process_is_skipped_from_then_on(tiny, tmp_path, monkeypatch):
    """The first process is aborted while it tries batched attention, as by an illegal address; the second one trains."""
    folder = tmp_path / "run"
    folder.mkdir()
    aborts = f"""
import os
from pathlib import Path
from fastft.run.trial_record import TrialRecord
with TrialRecord(Path({str(folder)!r})).trying({str(BATCHED)!r}):
    os.abort()
"""
    assert subprocess.run([sys.executable, "-c", aborts], check=False).returncode == -signal.SIGABRT
    record = TrialRecord(folder)
    trials = try_all(
        {EAGER: Candidate(), BATCHED: Candidate(call=0.01), StepChoice("compile"): Candidate(call=0.05)}, record
    )
    assert trials[1] == StepTrial(BATCHED, None, f"ended an earlier process. Delete {record.path} to try it again")
    assert fastest(trials) == StepChoice("compile")
    monkeypatch.setattr(step_choice, "candidate_modes", lambda *_: [])  # compilation takes long
    run(tiny, folder, train__step="measure", schedule__stop_epoch="1")
    reasons = {(t["mode"], t["attention"]): t["reason"] for t in logged(folder, "start")[-1]["step_trials"]}
    assert "ended an earlier process" in reasons["eager", "batched"] and reasons["eager", "auto"] is None


def test_a_failure_that_leaves_the_gpu_unusable_ends_the_process_and_is_recorded(tmp_path, monkeypatch):
    """A stub of a GPU: after an illegal address every later call fails too; other failures only drop the candidate."""
    broken = {EAGER: Candidate(), BATCHED: Candidate(error=RuntimeError("CUDA error: an illegal memory access"))}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert [t.choice for t in try_all(broken, TrialRecord(tmp_path), torch.device("cuda"))] == [EAGER, BATCHED]
    assert list(tmp_path.iterdir()) == []

    def fails(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    with pytest.raises(
        GpuLost, match=r"eager with batched attention made the GPU unusable \(.*. The same command skips"
    ):
        try_all(broken, TrialRecord(tmp_path), torch.device("cuda"))
    assert TrialRecord(tmp_path).ended == (str(BATCHED),)


def test_an_interrupt_while_a_candidate_is_tried_is_no_failure_of_it(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        try_all({EAGER: Candidate(error=KeyboardInterrupt())}, TrialRecord(tmp_path))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def wrong_silu(grad: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    found, sums = fused_reference.silu_backward(grad, x)
    return found, 1.1 * sums


@pytest.mark.parametrize(("silu", "chosen"), [(fused_reference.silu_backward, True), (wrong_silu, False)])
def test_fused_kernels_are_measured_and_taken_only_if_they_are_right(silu, chosen, monkeypatch):
    """With CPU implementations, which count as faster than eager here."""
    monkeypatch.setattr(step_choice, "failure", lambda mode, *_: None if mode == "fused" else "not now")
    monkeypatch.setattr(step_choice, "can_compile", lambda _: False)
    monkeypatch.setattr(step_choice, "fastest", lambda trials: [t for t in trials if t.milliseconds][-1].choice)
    recipe = load_recipe("final_b16", ["--model.image_size=32", "--data.num_classes=5", "--train.step=measure"])
    with fused_reference.cpu_operations(silu_backward=silu):
        decision = choose_step(recipe, plain_step(HALF), 4, None, reserve_bytes=0, say=print)
    assert (decision.choice.mode == "fused") is chosen
    trial = next(trial for trial in decision.trials if trial.choice.mode == "fused")
    assert chosen or "c_fc.bias differs by 10.1% from eager" in str(trial)


@pytest.mark.parametrize(
    ("capability", "micro_batch", "processes", "modes"),
    [
        ((7, 0), 65, 1, []), ((7, 0), 64, 1, ["graph"]), ((7, 0), 32, 2, []), ((8, 0), 256, 1, ["compile"]),
        ((9, 0), 32, 1, ["graph", "compile"]), ((9, 0), 32, 8, ["compile"]),
    ],
)  # fmt: skip
def test_candidates_depend_on_the_card(capability, micro_batch, processes, modes, monkeypatch):
    """Never the compiler on a V100, which it may crash on."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(step_choice, "can_compile", lambda device: True)
    recipe = load_recipe("final_b16")
    assert candidate_modes(recipe, torch.device("cuda"), micro_batch, processes) == modes


# the decision ---------------------------------------------------------------------------------------------------------


def decided(requested: str, device: str, stored: StepChoice | None, monkeypatch, *options: str) -> Decision:
    recorded = None if stored is None else StoredStep(mode=stored.mode, attention=stored.attention, device="card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(step_choice, "device_name", lambda device: "card")
    monkeypatch.setattr(step_choice, "_measure", lambda *_: Decision(COMPILED, "measurement", MEASURED))
    step = SimpleNamespace(world=World(0, 1, 0, torch.device(device)), precision=HALF)
    recipe = load_recipe("final_b16", [f"--train.step={requested}", *options])
    return choose_step(recipe, step, 4, recorded, reserve_bytes=0, say=print)


@pytest.mark.parametrize(
    ("requested", "device", "stored", "choice", "origin"),
    [
        ("auto", "cuda", None, COMPILED, "measurement"), ("auto", "cpu", None, EAGER, "default"),
        ("measure", "cpu", None, COMPILED, "measurement"), ("auto", "cuda", GRAPH, GRAPH, "checkpoint"),
        ("measure", "cuda", GRAPH, GRAPH, "checkpoint"),
        *((mode, "cuda", COMPILED, StepChoice(mode), "recipe") for mode in MODES),
    ],
)  # fmt: skip
def test_recipe_then_checkpoint_then_measurement(requested, device, stored, choice, origin, monkeypatch):
    decision = decided(requested, device, stored, monkeypatch)
    assert (decision.choice, decision.origin) == (choice, origin)


def test_without_a_compiler_compile_is_refused_and_a_recorded_one_measured_anew(monkeypatch, capsys):
    def missing(*_: object, **__: object) -> None:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", missing)
    assert decided("measure", "cpu", COMPILED, monkeypatch).origin == "measurement"
    assert "needs a compiler, which fails here (RuntimeError: No working C++ compiler found)" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"train\.step is compile, which needs a compiler"):
        step_choice.refuse_impossible(load_recipe("final_b16", ["--train.step=compile"]), torch.device("cpu"))


def test_a_recorded_choice_that_can_no_longer_be_is_measured_anew(monkeypatch):
    """Gradient checkpointing may be switched on when a run is resumed."""
    assert decided("auto", "cuda", GRAPH, monkeypatch) == Decision(GRAPH, "checkpoint")
    assert decided("auto", "cuda", GRAPH, monkeypatch, "--train.grad_checkpointing=true").origin == "measurement"


def test_a_recorded_choice_counts_only_on_its_device_and_if_it_is_known():
    stored = StoredStep(mode="compile", attention="batched", device="V100")
    assert stored_choice(stored, "V100") == COMPILED
    assert stored_choice(stored, "H100") is None
    assert stored_choice(structs.replace(stored, mode="magic"), "V100") is None
    assert stored_choice(structs.replace(stored, attention="magic"), "V100") is None
    assert stored_choice(None, "V100") is None


@pytest.mark.parametrize(
    ("mode", "options", "device", "reason"),
    [
        ("graph", [], "cpu", "needs a GPU"),
        ("graph", ["--train.grad_checkpointing=true"], "cuda", "does not work with train.grad_checkpointing"),
        ("fused", [], "cpu", "needs a GPU"),
        ("fused", ["--train.amp=fp16"], "cuda", r"needs half-precision weights \(--train.half_residual=on\)"),
        ("fused", [*HALF_ON, "--train.grad_checkpointing=true"], "cuda", "does not work with train.grad_checkpointing"),
        ("fused", [*HALF_ON, "--model.drop_path=0.1"], "cuda", "does not know timm's models, LayerScale and"),
        ("fused", [*HALF_ON, "--model.layer_scale=0.1"], "cuda", "does not know timm's models, LayerScale and"),
        ("fused", [*HALF_ON, "--model.arch=timm/test_vit"], "cuda", "does not know timm's models, LayerScale and"),
    ],
)
def test_a_mode_that_cannot_be_is_refused(mode, options, device, reason, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    recipe, device = load_recipe("final_b16", [*options, f"--train.step={mode}"]), torch.device(device)
    with pytest.raises(UserError, match=f"train.step is {mode}, which {reason}"):
        refuse_impossible(recipe, device)
    refuse_impossible(load_recipe("final_b16", options), device)


def test_fused_kernels_that_fail_are_one_line_or_no_candidate(monkeypatch):
    """The kernels run on a CPU, for which there are none, as if numba-cuda did not fit the driver."""
    recipe = load_recipe("final_b16", [*HALF_ON, "--train.step=fused"])
    probe = step_choice.PROBES["fused"][1]
    monkeypatch.setitem(step_choice.PROBES, "fused", ("numba-cuda", lambda _: probe(CPU)))
    with pytest.raises(UserError, match=r"train\.step is fused, which needs numba-cuda, which fails here \(NotImpl"):
        refuse_impossible(recipe, torch.device("cuda"))
    with fused_reference.cpu_operations():
        refuse_impossible(recipe, torch.device("cuda"))


# training -------------------------------------------------------------------------------------------------------------


def test_a_run_records_what_was_measured_and_its_resume_takes_it(tiny, tmp_path, monkeypatch, quick_compiler):
    """Candidates really run, which changes neither weights nor random numbers; the fastest is a stub."""
    monkeypatch.setattr(step_choice, "fastest", lambda trials: trials[0].choice)
    run(tiny, tmp_path / "measured", train__step="measure", schedule__stop_epoch="1")
    trials = logged(tmp_path / "measured", "start")[-1]["step_trials"]
    assert [(t["mode"], t["attention"]) for t in trials] == [
        ("eager", "auto"), ("eager", "batched"), ("compile", "auto"),
    ]  # fmt: skip
    assert all(trial["milliseconds"] > 0 and trial["reason"] is None for trial in trials)
    run(tiny, tmp_path / "plain", schedule__stop_epoch="1")
    assert differing(end(tmp_path / "measured"), end(tmp_path / "plain")) == []
    state = read_checkpoint(list_checkpoints(tmp_path / "measured/checkpoints")[-1]).state
    assert (state.progress.step_choice.mode, state.progress.step_choice.attention) == ("eager", "auto")

    monkeypatch.setattr(step_choice, "_measure", None)
    run(tiny, tmp_path / "measured", train__step="measure", schedule__stop_epoch="2")
    last = logged(tmp_path / "measured", "start")[-1]
    assert (last["step_mode"], last["step_origin"], last["step_trials"]) == ("eager", "checkpoint", [])


def test_the_processes_get_the_choice_of_process_0():
    """A stub of two processes: the second one measures nothing and returns what it receives."""
    received = iter([None, Decision(COMPILED, "measurement")])
    world = SimpleNamespace(
        is_main=False, size=2, device=torch.device("cpu"), broadcast=lambda value: next(received), any=lambda flag: flag
    )
    step = SimpleNamespace(world=world, precision=HALF)
    recipe = load_recipe("final_b16", ["--train.step=measure"])
    decision = choose_step(recipe, step, 4, None, reserve_bytes=0, say=print)  # type: ignore[arg-type]
    assert decision.choice == COMPILED


@pytest.mark.parametrize("rank", [0, 1])
def test_a_recorded_choice_that_one_process_cannot_compute_is_none_in_all(rank, monkeypatch):
    """A stub of two processes, in the other of which nothing compiles and fused kernels fail."""
    said: list[str] = []
    fused: list[bool] = []
    monkeypatch.setattr(step_choice, "failure", lambda *_: None)
    monkeypatch.setattr(step_choice, "device_name", lambda device: "card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(step_choice, "_measure", lambda *a: fused.append(a[-1]) or Decision(EAGER, "measurement"))
    received = iter([StepChoice("compile"), Decision(EAGER, "measurement")])
    world = SimpleNamespace(
        is_main=rank == 0, size=2, device=torch.device("cuda"), any=lambda flag: True,
        broadcast=lambda value: value if rank == 0 else next(received),
    )  # fmt: skip
    recorded = StoredStep(mode="compile", attention="auto", device="card" if rank == 0 else "another")
    step = SimpleNamespace(world=world, precision=HALF)
    decision = choose_step(load_recipe("final_b16"), step, 4, recorded, reserve_bytes=0, say=said.append)  # type: ignore[arg-type]
    assert decision == Decision(EAGER, "measurement") and fused == [False] * (rank == 0)
    assert said == ["step: compile (from checkpoint) is not possible in another process. Choosing another"]
