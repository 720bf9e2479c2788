"""Small runs through the real trainer, and what they logged."""

from pathlib import Path

import torch
from rich.console import Console

from fastft.config import load_recipe
from fastft.files.run_directory import read_metrics
from fastft.train.checkpoint import read_checkpoint, step_checkpoints
from fastft.train.loop import train

QUIET = Console(quiet=True)


def flags(tiny: dict[str, str], folder: Path, **changes: str) -> list[str]:
    values = tiny | {"train.run_dir": str(folder)} | {k.replace("__", "."): v for k, v in changes.items()}
    return [f"--{k}={v}" for k, v in values.items()]


def run(tiny: dict[str, str], folder: Path, **changes: str) -> dict:
    return train(load_recipe("rcp/final_b16.yaml", flags(tiny, folder, **changes)), QUIET)


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(m["step"], m["loss"]) for m in read_metrics(folder / "metrics.jsonl") if m["kind"] == "train"]


def end(folder: Path) -> dict[str, torch.Tensor]:
    """Weights, averaged weights and optimiser state of the newest checkpoint. Losses are a mean: they hide last bits."""
    tensors = read_checkpoint(step_checkpoints(folder / "checkpoints")[-1]).tensors
    return {f"{kind}/{name}": tensor for kind, named in tensors.items() for name, tensor in named.items()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]
