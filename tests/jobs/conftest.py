"""Options that make any recipe of the paper a run of one step: a narrow tower, crops of two photographs."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console


@pytest.fixture(scope="session")
def quiet() -> Console:
    return Console(file=Path(os.devnull).open("w"))


@pytest.fixture(scope="session")
def one_step(tiny: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[str]]:
    """`one_step(layers)`: overrides for one optimiser step at full lr on a tower of so many blocks, 32 px, fp32."""
    folder = tmp_path_factory.mktemp("one_step")

    def overrides(layers: int) -> list[str]:
        vision = {"image_size": 32, "layers": layers, "width": 64, "patch_size": 8, "head_width": 32}
        arch = folder / f"arch{layers}.json"
        arch.write_text(json.dumps({"embed_dim": 32, "quick_gelu": True, "vision_cfg": vision}))
        data = ("data.train", "data.val", "data.num_classes")
        kept = (*data, "model.weights", "model.image_size", "train.device", "train.amp")
        values = {key: tiny[key] for key in kept} | {
            "data.workers": 1, "model.arch": arch, "optim.batch_size": 48, "schedule.epochs": 1,
            "schedule.warmup_epochs": 0, "schedule.stop_epoch": "none", "train.checkpoint_steps": 0,
        }  # fmt: skip
        return [f"--{key}={value}" for key, value in values.items()]

    return overrides
