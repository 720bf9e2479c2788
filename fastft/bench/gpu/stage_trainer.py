"""Stage 6: the trainer for 60 steps with evaluation and checkpoint, its resume, and augmentation against a copy of its bytes."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console

from fastft.bench import augment_gpu_bench
from fastft.bench.gpu.stage_loader import small_beton
from fastft.recipe import recipe_from_dict
from fastft.run.run_directory import load_run
from fastft.train.loop import train

IMAGES, BATCH, EPOCHS = 700, 256, 30  # two steps an epoch


def run(tiny: bool) -> dict[str, Any]:
    """Train 60 steps, the second half after a resume; the figures are the run's own log.

    Raises:
        AssertionError: the run did not train all its steps.
    """
    with TemporaryDirectory() as folder:
        beton = small_beton(Path(folder), 8 if tiny else IMAGES)
        sections = _sections(beton, Path(folder), tiny)
        for stop in (sections["schedule"]["epochs"] // 2, None):
            train(recipe_from_dict("gpu_day", _stopped(sections, stop)), Console(quiet=True))
        found = load_run(Path(sections["train"]["run_dir"]))
    assert found.finished and found.steps == found.total_steps, "the run did not finish"
    return {
        "machine": found.machine, "step_trials": found.starts[0]["step_trials"],
        "intervals": found.intervals, "splits": found.splits,
        "checkpoint_seconds": [c["seconds"] for c in found.checkpoints],
        "evaluation_seconds": [e["seconds"] for e in found.evaluations],
        "augmentation": {} if not torch.cuda.is_available() else _augmentation(),
    }  # fmt: skip


def _sections(beton: Path, folder: Path, tiny: bool) -> dict[str, dict[str, Any]]:
    batch, epochs = (4, 2) if tiny else (BATCH, EPOCHS)
    sections: dict[str, dict[str, Any]] = {
        "data": {"train": str(beton), "val": str(beton), "num_classes": 1000},
        "model": {"weights": "random"},
        "optim": {"batch_size": batch},
        "schedule": {"epochs": epochs, "warmup_epochs": 0},
        "train": {"run_dir": str(folder / "run"), "log_every": 1 if tiny else 10, "eval_every": epochs // 2,
                  "step": "auto" if tiny else "measure"},
    }  # fmt: skip
    if tiny:
        arch = folder / "tiny.json"
        arch.write_text(
            '{"embed_dim": 64, "quick_gelu": true, "vision_cfg": '
            '{"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}}'
        )
        sections["model"] |= {"arch": str(arch), "image_size": 32}
    return sections


def _stopped(sections: dict[str, dict[str, Any]], stop_epoch: int | None) -> dict[str, dict[str, Any]]:
    return {**sections, "schedule": {**sections["schedule"], "stop_epoch": stop_epoch}}


def _augmentation() -> dict[str, dict[str, float]]:
    """Milliseconds of a batch of 256 per policy: the kernels, and a copy of the bytes that they must move."""
    rows: dict[str, dict[str, float]] = {}
    for name, arms in (("kernels", augment_gpu_bench.ours()), ("copy", augment_gpu_bench.copies())):
        for policy, arm in arms.items():
            arm()
            began = time.perf_counter()
            arm()
            seconds = time.perf_counter() - began
            rows.setdefault(policy, {})[name] = 1e3 * seconds / augment_gpu_bench.REPEATS
    return rows
