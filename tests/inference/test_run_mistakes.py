"""The mistakes of a run's best checkpoint on its validation file, counted as evaluation counts."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from beton_tools.convert import convert_folder
from beton_tools.errors import UserError
from beton_tools.writer import WriteOptions
from fastft.build import build_model, recipe_arch
from fastft.config import Recipe, load_recipe
from fastft.files.run_directory import load_run
from fastft.inference.evaluation import evaluate_checkpoint
from fastft.inference.logits import compute_logits
from fastft.inference.run_mistakes import find_run_mistakes
from fastft.train.checkpoint import write_checkpoint
from fastft.train.progress import describe_model
from tests.files.written import RECIPES

ARCH = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
}


@pytest.fixture(scope="module")
def run_of_random_model(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, np.ndarray]) -> Path:
    """A run directory with a checkpoint of an untrained model, and 36 crops of six photographs."""
    folder = tmp_path_factory.mktemp("run")
    for name, image in photographs.items():
        (folder / "val" / name).mkdir(parents=True)
        for k in range(6):
            Image.fromarray(image[20 * k : 20 * k + 80, 30 * k : 30 * k + 96]).save(
                folder / f"val/{name}/{k}.png"
            )
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
        folder / "checkpoints/best-0000",
        describe_model(recipe, recipe_arch(recipe), classes, {}),
        {"model": weights},
    )


def test_the_number_of_mistakes_is_that_of_evaluation(run_of_random_model: Path) -> None:
    mistakes, _ = find_run_mistakes(load_run(run_of_random_model), insist=True)
    scores = evaluate_checkpoint(run_of_random_model, None, "cpu")
    assert mistakes is not None and mistakes.images == 36
    assert 100 * (1 - mistakes.wrong / 36) == pytest.approx(scores["top1"])
    assert all(m.image.startswith("data:image/jpeg") for m in mistakes.most_confident)
    assert {c.name for c in mistakes.classes} <= {
        "astronaut",
        "chelsea",
        "coffee",
        "rocket",
        "china",
        "flower",
    }


def test_logits_are_in_the_order_of_the_file(run_of_random_model: Path) -> None:
    found = compute_logits(run_of_random_model, run_of_random_model / "val.beton", "cpu")
    assert found.logits_NK.shape == (36, 6)
    assert np.bincount(found.labels_N).tolist() == [6] * 6
    assert found.checkpoint == "best-0000"


def test_missing_validation_data_is_a_note_or_with_insist_an_error(
    run_of_random_model: Path, tmp_path: Path
) -> None:
    text = (run_of_random_model / "recipe.yaml").read_text().replace("val.beton", "gone.beton")
    (tmp_path / "recipe.yaml").write_text(text)
    mistakes, why = find_run_mistakes(load_run(tmp_path), insist=False)
    assert mistakes is None and "gone.beton" in why
    with pytest.raises(UserError):
        find_run_mistakes(load_run(tmp_path), insist=True)
