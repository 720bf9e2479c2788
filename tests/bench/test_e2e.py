"""End to end: fastft and timm do the same work."""

from pathlib import Path

import pytest

from fastft.bench import e2e
from fastft.bench.data import Images, Workspace
from fastft.bench.options import Options
from fastft.config import recipe_from_dict

RCP = Path(__file__).parents[2] / "rcp"


@pytest.mark.parametrize("recipe", [None, RCP / "final_b16.yaml"])
def test_the_patch_embedding_trains_as_it_does_with_timm(tmp_path: Path, recipe: Path | None) -> None:
    workspace = Workspace(tmp_path, Images([tmp_path], "none"))
    options = Options(workspace, rounds=1, threads=1, recipe=recipe)
    sections = e2e._sections(options, tmp_path / "images.beton")
    assert not recipe_from_dict("e2e", sections).model.freeze_conv1
