"""End to end: fastft and timm do the same work."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beton_tools.convert import convert_folder
from beton_tools.writer import WriteOptions
from fastft.bench import e2e
from fastft.bench.data import Images, Workspace
from fastft.bench.harness import Rounds
from fastft.bench.options import Options
from fastft.config import recipe_from_dict

RCP = Path(__file__).parents[2] / "rcp"


@pytest.mark.parametrize("recipe", [None, RCP / "final_b16.yaml"])
def test_the_patch_embedding_trains_as_it_does_with_timm(tmp_path: Path, recipe: Path | None) -> None:
    workspace = Workspace(tmp_path, Images([tmp_path], "none"))
    options = Options(workspace, rounds=1, threads=1, recipe=recipe)
    sections = e2e._sections(options, tmp_path / "images.beton")
    assert not recipe_from_dict("e2e", sections).model.freeze_conv1


def test_the_parts_of_the_loaders_work_are_those_that_are_measured_apart(
    tmp_path: Path, photographs: dict[str, np.ndarray]
) -> None:
    (tmp_path / "images" / "coffee").mkdir(parents=True)
    Image.fromarray(photographs["coffee"][:64, :64]).save(tmp_path / "images" / "coffee" / "0.jpg")
    convert_folder(tmp_path / "images", tmp_path / "a.beton", WriteOptions(workers=0))
    arms = e2e.loader_work(str(tmp_path / "a.beton"), 32)
    turns = {name: [{"cpu": 0.5, "wall": 0.5, "count": float(arm())}] for name, arm in arms.items()}
    work = Rounds({"fastft": turns}, {}, {})
    measure = e2e._work_measure(work, {})
    assert [c["name"] for c in measure["contenders"]] == ["read", "decode", "augment"]
    trained = Rounds({"fastft": {"pass": [{"count": 10}]}}, {}, {})
    assert e2e._work_seconds(work, trained) == {"read": 5.0, "decode": 5.0, "augment": 5.0}
