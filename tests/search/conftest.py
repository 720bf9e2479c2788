"""Options that make any recipe of the paper a run of one step: a narrow tower, crops of two photographs."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions

BATCH = 8


@pytest.fixture(scope="session")
def quiet() -> Console:
    return Console(file=Path(os.devnull).open("w"))


@pytest.fixture(scope="session")
def one_step(
    tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, np.ndarray]
) -> Callable[[int], list[str]]:
    """`one_step(layers)`: overrides for one optimiser step at full lr on a tower of so many blocks, 32 px, fp32."""
    folder = tmp_path_factory.mktemp("one_step")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("astronaut", "coffee"):
            (folder / split / name).mkdir(parents=True)
            for i in range(BATCH // 2):
                y, x = (int(rng.integers(0, n - 64)) for n in photographs[name].shape[:2])
                crop = Image.fromarray(photographs[name][y : y + 64, x : x + 64])
                crop.save(folder / split / name / f"{i}.jpg", quality=95)
        convert_folder(folder / split, folder / f"{split}.beton", WriteOptions(workers=0))

    def overrides(layers: int) -> list[str]:
        vision = {"image_size": 32, "layers": layers, "width": 64, "patch_size": 8, "head_width": 32}
        arch = folder / f"arch{layers}.json"
        arch.write_text(json.dumps({"embed_dim": 32, "quick_gelu": True, "vision_cfg": vision}))
        values = {
            "data.train": folder / "train.beton", "data.val": folder / "val.beton", "data.num_classes": 2,
            "data.workers": 1, "model.arch": arch, "model.weights": "random", "model.image_size": 32,
            "optim.batch_size": BATCH, "schedule.epochs": 1, "schedule.warmup_epochs": 0, "schedule.stop_epoch": "none",
            "train.device": "cpu", "train.amp": "fp32", "train.checkpoint_steps": 0,
        }  # fmt: skip
        return [f"--{key}={value}" for key, value in values.items()]

    return overrides
