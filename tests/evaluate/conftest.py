"""A run directory of an untrained model on six classes of real photographs."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.model.recipe_model import build_model, recipe_arch
from fastft.recipe import Recipe, load_recipe
from fastft.run.checkpoint import write_checkpoint
from fastft.train.progress import describe_model
from tests.written import RECIPES

ARCH = {"embed_dim": 32, "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}}


@pytest.fixture(scope="module")
def run_of_random_model(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, np.ndarray]) -> Path:
    """A run directory with a checkpoint of an untrained model, and 36 crops of six photographs."""
    folder = tmp_path_factory.mktemp("run")
    for name, image in photographs.items():
        (folder / "val" / name).mkdir(parents=True)
        for k in range(6):
            Image.fromarray(image[20 * k : 20 * k + 80, 30 * k : 30 * k + 96]).save(folder / f"val/{name}/{k}.png")
    convert_folder(folder / "val", folder / "val.beton", WriteOptions(workers=0))
    (folder / "arch.json").write_text(json.dumps(ARCH))
    recipe = load_recipe(RECIPES / "final_b16.yaml", [f"--{k}={v}" for k, v in _options(folder).items()])
    _write(folder, recipe, sorted(photographs))
    return folder


def _options(folder: Path) -> dict[str, object]:
    return {
        "data.val": folder / "val.beton", "data.num_classes": 6, "model.arch": folder / "arch.json",
        "model.weights": "random", "model.image_size": 32, "model.head_init_scale": 1.0, "train.amp": "fp32",
    }  # fmt: skip


def _write(folder: Path, recipe: Recipe, classes: list[str]) -> None:
    sections = json.loads(json.dumps(recipe.as_dict()))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(sections))
    weights = build_model(recipe, pretrained=False).state_dict()
    write_checkpoint(
        folder / "checkpoints/best-0000", describe_model(recipe, recipe_arch(recipe), classes, {}), {"model": weights}
    )
