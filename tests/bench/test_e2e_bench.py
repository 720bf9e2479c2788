"""End to end: fastft and timm do the same work."""

import pytest
from PIL import Image

from fastft.bench import e2e_bench
from fastft.bench.dataset import RESIZED, Images, Workspace
from fastft.bench.harness import Options


def test_a_training_round_reports_the_time_split_of_step_and_loader(tmp_path, photographs):
    for k in range(4):
        folder = tmp_path / "images" / ("coffee" if k % 2 else "chelsea")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photographs[folder.name][:64, :64]).save(folder / f"{k}.jpg")
    paths = sorted((tmp_path / "images").glob("*/*"))
    options = Options(Workspace(tmp_path, Images(paths, "coffee")), rounds=1, threads=1, quick=True)
    sections = e2e_bench._sections(options, options.workspace.beton(RESIZED))
    trial = e2e_bench.train_recipe(sections)["pass"]()
    assert trial["count"] == 4 and trial["steps"] == 2
    assert trial["training"] == pytest.approx(sum(trial.get(part, 0) for part in e2e_bench.STEP_PARTS))
    assert {"forward", "backward", "decode", "augment"} <= trial.keys()
