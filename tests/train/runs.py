"""Small runs through the real trainer, and what they logged."""

from pathlib import Path

from rich.console import Console

from fastft.config import load_recipe
from fastft.report.runs import read_metrics
from fastft.train.loop import train

QUIET = Console(quiet=True)


def flags(tiny: dict[str, str], folder: Path, **changes: str) -> list[str]:
    values = tiny | {"train.run_dir": str(folder)} | {k.replace("__", "."): v for k, v in changes.items()}
    return [f"--{k}={v}" for k, v in values.items()]


def run(tiny: dict[str, str], folder: Path, **changes: str) -> dict:
    return train(load_recipe("rcp/final_b16.yaml", flags(tiny, folder, **changes)), QUIET)


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(m["step"], m["loss"]) for m in read_metrics(folder / "metrics.jsonl") if m["kind"] == "train"]
