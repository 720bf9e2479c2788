"""The loader and the trainer on a card: batches equal the CPU's, and a stopped run continues."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fastft.augment.policies import AugmentPolicy
from fastft.bench.dataset import ORIGINAL, Workspace, find_images
from fastft.data.loader import TrainLoader
from fastft.data.stage import Output
from fastft.jobs.run import run_recipe
from fastft.recipe import recipe_from_dict
from fastft.run.profile import MEMORY, OPERATIONS, TRACE
from fastft.run.run_directory import load_run

POLICY = AugmentPolicy("rand-m9-mstd0.5-inc1", erase_prob=0.25)
SLOW_CONSUMER_SECONDS = 0.01


@pytest.fixture
def beton(tmp_path: Path, device: torch.device) -> Path:
    """Images of $FASTFT_IMAGENET_SAMPLE if it is set, else packaged photographs."""
    images = find_images(None, tmp_path, 24 if device.type == "cpu" else 600)
    return Workspace(tmp_path, images).beton(ORIGINAL)


def endless(loader: TrainLoader) -> Iterator[Any]:
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1


def test_batches_of_the_loader_equal_those_on_the_cpu(beton, device):
    """With a consumer that is slower than the loader, whose batches must not be overwritten; rotations as in test_kernels."""
    size, batch, batches = (32, 4, 8) if device.type == "cpu" else (224, 64, 60)
    with (
        TrainLoader(beton, POLICY, Output(size, device), batch_size=batch) as loader,
        TrainLoader(beton, POLICY, Output(size), batch_size=batch) as expected,
    ):
        pairs = zip(endless(loader), endless(expected), strict=False)
        for (ours, theirs), _ in zip(pairs, range(batches), strict=False):
            time.sleep(SLOW_CONSUMER_SECONDS)
            assert ours.images.device.type == device.type and (ours.ids == theirs.ids).all()
            assert (ours.images.cpu() != theirs.images).float().mean() < 1e-3


def sections(beton: Path, folder: Path, device: torch.device, stop_epoch: int | None) -> dict[str, Any]:
    """ViT-B/16 from random weights for 60 steps; on a CPU a tiny tower for 4."""
    cpu = device.type == "cpu"
    arch = folder / "tiny.json"
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}
    arch.write_text(json.dumps({"embed_dim": 64, "quick_gelu": True, "vision_cfg": vision}))
    epochs = 4 if cpu else 30
    return {
        "data": {"train": str(beton), "val": str(beton), "num_classes": 1000},
        "model": {"weights": "random"} | ({"arch": str(arch), "image_size": 32} if cpu else {}),
        "optim": {"batch_size": 16 if cpu else 256},
        "schedule": {"epochs": epochs, "warmup_epochs": 0, "stop_epoch": stop_epoch},
        "train": {"run_dir": str(folder / "run"), "log_every": 1, "eval_every": 2 if cpu else 15, "device": device.type,
                  "profile": 5},
    }  # fmt: skip


def test_a_stopped_run_continues_to_its_last_step(beton, tmp_path, device):
    """The second call reads the checkpoint of the first one; every step is logged once, and evaluations are there."""
    whole = sections(beton, tmp_path, device, None)["schedule"]["epochs"]
    for stop in (whole // 2, None):
        run_recipe(recipe_from_dict("gpu", sections(beton, tmp_path, device, stop)).asked(), Console(quiet=True))
    found = load_run(tmp_path / "run")
    assert found.finished and found.steps == found.total_steps and len(found.log.start) == 2
    assert len(found.intervals) == found.total_steps and len(found.evaluations) >= 2
    if device.type == "cuda":  # a CPU's training is too short
        written = {path.name for path in (tmp_path / "run/profile").iterdir()}
        assert written == {TRACE, OPERATIONS, MEMORY}
