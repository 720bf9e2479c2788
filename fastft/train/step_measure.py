"""Choose how this run computes its steps: ask the cache, or measure in another process."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fastft import __version__
from fastft.machine.facts import cpu_name
from fastft.model import ImageClassifier
from fastft.recipe import Recipe
from fastft.train.distributed import World
from fastft.train.micro_batch import COPIES
from fastft.train.precision import Precision
from fastft.train.step_cache import load_trials, store_trials
from fastft.train.step_choice import Decision, StepChoice, StepTrial, decide, requested_step, stored_choice
from fastft.train.step_trials import Request, describe_error

MEASURE_SECONDS = 60.0
POLL_SECONDS = 0.05
TRIALS_MODULE = "fastft.train.step_trials"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def choose_step(
    recipe: Recipe,
    model: ImageClassifier,
    world: World,
    precision: Precision,
    micro_batch: int,
    stored: Mapping[str, str] | None,
    *,
    loader_bytes: float,
    say: Callable[[str], None],
    on_wait: Callable[[], None],
) -> Decision:
    """The decision of process 0, in every process; all call this once.

    Args:
        stored: the choice that the checkpoint records (`fastft.train.progress.Progress.step_choice`).
        loader_bytes: GPU memory that the loaders will need.
        say: prints a line. on_wait: called while a measurement is waited for; what it raises ends it.
    """
    if not world.is_main:
        return world.broadcast(None)
    request = _request(recipe, model, world, precision, micro_batch, loader_bytes)
    name = device_name(world.device)
    key = cache_key(request, name)

    def measure() -> list[StepTrial]:
        say(f"measuring how to compute a step, at most {request.seconds:.0f} s")
        trials = measure_in_process(request, on_wait)
        if any(trial.milliseconds is not None for trial in trials):
            store_trials(key, trials)
        return trials

    decision = decide(
        requested_step(recipe), stored_choice(stored, name), world.device.type == "cuda",
        load=lambda: load_trials(key, say), measure=measure,
    )  # fmt: skip
    return world.broadcast(decision)


def cache_key(request: Request, device: str) -> dict[str, Any]:
    """The cache key: everything that the speeds depend on."""
    model = {key: value for key, value in request.recipe["model"].items() if key not in ("arch", "weights")}
    return {
        "device": device,
        "torch": torch.__version__,
        "fastft": __version__,
        "arch": request.arch,
        "model": model,
        "classes": request.recipe["data"]["num_classes"],
        "mixes": any(request.recipe["augment"][key] > 0 for key in ("mixup", "cutmix")),
        "grad_checkpointing": request.recipe["train"]["grad_checkpointing"],
        "micro_batch": request.micro_batch,
        "processes": request.processes,
        "threads": request.threads if request.device == "cpu" else None,
        "dtype": request.dtype,
        "half_residual": request.half_residual,
    }


def _request(
    recipe: Recipe,
    model: ImageClassifier,
    world: World,
    precision: Precision,
    micro_batch: int,
    loader_bytes: float,
) -> Request:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    moments = (COPIES - 1) * 4 * trained  # gradients are measured, the optimiser's state is not
    waits = world.timeout.total_seconds() / 2 if world.size > 1 else MEASURE_SECONDS  # of the other processes
    return Request(
        recipe=recipe.as_dict(),
        arch=asdict(model.visual.arch),
        device=str(world.device),
        dtype=precision.name,
        half_residual=precision.half_residual,
        micro_batch=micro_batch,
        processes=world.size,
        threads=torch.get_num_threads(),
        reserve_bytes=int(moments + loader_bytes),
        seconds=min(MEASURE_SECONDS, waits),
    )


def measure_in_process(
    request: Request,
    on_wait: Callable[[], None],
    command: tuple[str, ...] = (sys.executable, "-m", TRIALS_MODULE),
) -> list[StepTrial]:
    """The trials that `fastft.train.step_trials` ends within the request's seconds; then it is killed.

    A candidate that was running when the process was killed or crashed is dropped. command: the program and its module.
    """
    with tempfile.TemporaryDirectory(prefix="fastft-step-") as folder:
        asked, results, output = (Path(folder) / name for name in ("request.json", "results.jsonl", "output"))
        asked.write_text(json.dumps(asdict(request)))
        results.touch()
        with output.open("w") as log:
            try:
                process = subprocess.Popen(
                    [*command, str(asked), str(results)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            except OSError as error:
                return [StepTrial(StepChoice(), None, describe_error(error))]
            ending = _wait(process, time.monotonic() + request.seconds, on_wait)
        if ending is None:
            reason = f"stopped after {request.seconds:.0f} s"
        else:
            last = (output.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            reason = f"its process ended with code {ending}: {last[:160]}"
        return read_trials(results.read_text(), reason)


def _wait(process: subprocess.Popen, deadline: float, on_wait: Callable[[], None]) -> int | None:
    """The exit code; None if the process was killed at the deadline."""
    try:
        while time.monotonic() < deadline:
            on_wait()
            try:
                return process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        return None
    finally:
        process.kill()
        process.wait()


def read_trials(results: str, reason: str) -> list[StepTrial]:
    """Trials from the lines that the other process wrote; what it started and did not end is dropped for `reason`."""
    started, trials = StepChoice(), []
    ended = False
    for line in results.splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # cut short when the process was killed
            break
        ended = "ended" in event
        if ended:
            trials.append(trial_from_dict(event["ended"]))
        else:
            started = StepChoice(**event["started"])
    return trials if ended else [*trials, StepTrial(started, None, reason)]


def trial_from_dict(values: Mapping[str, Any]) -> StepTrial:
    """Inverse of `StepTrial.as_dict`."""
    return StepTrial(
        StepChoice(values["mode"], values["attention"]), values["milliseconds"], values["reason"]
    )
