"""Small runs with the real trainer, and their results."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich.console import Console

from fastft.jobs.run import run_recipe
from fastft.recipe import load_recipe
from fastft.run.checkpoint import list_checkpoints, read_checkpoint, step_of
from fastft.run.metrics_lines import read_lines

QUIET = Console(quiet=True)


def flags(tiny: dict[str, str], folder: Path, **changes: str) -> list[str]:
    values = tiny | {"train.run_dir": str(folder)} | {k.replace("__", "."): v for k, v in changes.items()}
    return [f"--{k}={v}" for k, v in values.items()]


def run(tiny: dict[str, str], folder: Path, **changes: str) -> dict[str, Any]:
    """Train; the content of result.json."""
    _, result = run_recipe(load_recipe("rcp/final_b16.yaml", flags(tiny, folder, **changes)), QUIET)
    return msgspec.to_builtins(result)


def logged(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_lines(folder / "metrics.jsonl") if line["kind"] == kind]


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in logged(folder, "train")]


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def wait_for(condition: Callable[[], bool], *processes: subprocess.Popen) -> None:
    """While the processes run, at most two minutes."""
    deadline = time.monotonic() + 120
    while not condition():
        assert all(p.poll() is None for p in processes) and time.monotonic() < deadline
        time.sleep(0.01)


def rewind(folder: Path, step: int) -> None:
    """The state of a run that was killed after the checkpoint of this step."""
    (folder / "result.json").unlink(missing_ok=True)
    for path in list_checkpoints(folder / "checkpoints"):
        if step_of(path) > step:
            shutil.rmtree(path)


def end(folder: Path) -> dict[str, torch.Tensor]:
    """Weights, EMA and optimiser state of the newest checkpoint. A loss is a mean, which can hide differences in last bits."""
    path = list_checkpoints(folder / "checkpoints")[-1]
    stems = [stem for stem in ("model", "optimizer", "ema") if (path / f"{stem}.safetensors").exists()]
    tensors = read_checkpoint(path, stems).tensors
    return {f"{kind}/{name}": tensor for kind, named in tensors.items() for name, tensor in named.items()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]
