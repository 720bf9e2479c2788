"""Small runs with the real trainer, and their results."""

import shutil
from pathlib import Path

import torch
from rich.console import Console

from fastft.recipe import load_recipe
from fastft.run.checkpoint import list_checkpoints, read_checkpoint, step_of
from fastft.run.run_directory import read_metrics
from fastft.train.loop import train

QUIET = Console(quiet=True)


def flags(tiny: dict[str, str], folder: Path, **changes: str) -> list[str]:
    values = tiny | {"train.run_dir": str(folder)} | {k.replace("__", "."): v for k, v in changes.items()}
    return [f"--{k}={v}" for k, v in values.items()]


def run(tiny: dict[str, str], folder: Path, **changes: str) -> dict:
    return train(load_recipe("rcp/final_b16.yaml", flags(tiny, folder, **changes)), QUIET)


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(m["step"], m["loss"]) for m in read_metrics(folder / "metrics.jsonl") if m["kind"] == "train"]


def rewind(folder: Path, step: int) -> None:
    """The state of a run that was killed after the checkpoint of this step."""
    (folder / "result.json").unlink(missing_ok=True)
    for path in list_checkpoints(folder / "checkpoints"):
        if step_of(path) > step:
            shutil.rmtree(path)


def end(folder: Path) -> dict[str, torch.Tensor]:
    """Weights, EMA and optimiser state of the newest checkpoint. A loss is a mean, which can hide differences in last bits."""
    tensors = read_checkpoint(list_checkpoints(folder / "checkpoints")[-1], ("model", "optimizer"), ("ema",)).tensors
    return {f"{kind}/{name}": tensor for kind, named in tensors.items() for name, tensor in named.items()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]
