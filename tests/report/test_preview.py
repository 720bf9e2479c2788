"""The preview shows what training sees."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beton_tools.read.format import Beton
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.augment.policies import AugmentPolicy
from fastft.data.loader import TrainLoader
from fastft.data.stage import Output
from fastft.recipe import load_recipe
from fastft.report.preview import carry_out, write_preview
from tests.written import write_crops


@pytest.fixture(scope="module")
def beton(photographs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("preview")
    write_crops(folder / "images", photographs, dict.fromkeys(photographs, 1), size=200)
    convert_folder(folder / "images", folder / "p.beton", WriteOptions(workers=0))
    return folder / "p.beton"


def test_the_images_equal_those_of_the_loader(beton):
    policy, size = AugmentPolicy("rand-m9-mstd0.5-inc1"), 64
    n = Beton.open(beton).num_samples
    with TrainLoader(beton, policy, Output(size), seed=3, batch_size=n) as loader:
        batch = next(loader.epoch(2))
        seen = batch.images.permute(0, 2, 3, 1).numpy() * policy.std + np.array(policy.mean)
        _, drawn = carry_out(Beton.open(beton), policy, size, seed=3, epoch=2, samples=batch.ids)
        assert np.array_equal((255 * seen).round().clip(0, 255).astype(np.uint8), drawn)


def test_the_picture_is_written(beton, tmp_path):
    recipe = load_recipe("final_b16", [f"--data={beton}", "--augment.policy=3aug", "--model.image_size=48"])
    write_preview(recipe, epoch=0, count=5, out=tmp_path / "g.png")
    with Image.open(tmp_path / "g.png") as image:
        assert image.width > 1000
    assert [p.name for p in tmp_path.iterdir()] == ["g.png"]


def test_an_epoch_beyond_the_recipe_is_refused(beton, tmp_path, refused):
    command = ["preview", "final_b16", f"--data={beton}", f"--out={tmp_path / 'g.png'}", "--epoch=50"]
    assert "there is no epoch 50. The recipe has 50, counted from 0" in refused(command)
    assert not (tmp_path / "g.png").exists()
