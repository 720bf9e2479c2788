"""End to end: fastft and timm do the same work."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastft.bench import e2e_bench
from fastft.bench.dataset import Images, Workspace
from fastft.bench.harness import Options
from fastft.recipe import load_recipe, recipe_from_dict

RCP = Path(__file__).parents[2] / "rcp"


@pytest.mark.parametrize("recipe", [None, RCP / "final_b16.yaml"])
def test_the_patch_embedding_trains_as_with_timm(tmp_path: Path, recipe: Path | None) -> None:
    workspace = Workspace(tmp_path, Images([tmp_path], "none"))
    options = Options(workspace, rounds=1, threads=1, recipe=recipe and load_recipe(recipe))
    sections = e2e_bench._sections(options, tmp_path / "images.beton")
    assert not recipe_from_dict("e2e", sections).model.freeze_conv1


def test_a_training_round_reports_the_time_split_of_step_and_loader(
    tmp_path: Path, photographs: dict[str, np.ndarray]
) -> None:
    for k in range(4):
        folder = tmp_path / "images" / ("coffee" if k % 2 else "chelsea")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photographs[folder.name][:64, :64]).save(folder / f"{k}.jpg")
    paths = sorted((tmp_path / "images").glob("*/*"))
    options = Options(Workspace(tmp_path, Images(paths, "coffee")), rounds=1, threads=1, quick=True)
    sections = e2e_bench._sections(options, options.workspace.beton(options.workspace.sets[0]))
    trial = e2e_bench.train_recipe(sections)["pass"]()
    assert trial["count"] == 4 and trial["steps"] == 2
    assert trial["training"] == pytest.approx(sum(trial.get(part, 0) for part in e2e_bench.STEP_PARTS))
    assert {"forward", "backward", "decode", "augment"} <= trial.keys()


def test_batches_are_even_because_mixup_needs_pairs(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, Images([tmp_path] * 30, "none"))
    options = Options(workspace, rounds=1, threads=1, recipe=load_recipe(RCP / "baseline_b16.yaml"))
    assert e2e_bench._sections(options, tmp_path / "images.beton")["optim"]["batch_size"] == 14
