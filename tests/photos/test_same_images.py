"""Photographs that are also validated on are found by their bytes, and compared once."""

from pathlib import Path

import pytest

from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.photos import prepare
from fastft.photos.prepare import prepare_data
from fastft.recipe import load_recipe


def test_photographs_that_are_also_validated_on_are_a_warning_and_compared_once(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_folder(album, tmp_path / "val.beton", WriteOptions(workers=0))
    paths = {"data.train": album, "data.val": tmp_path / "val.beton", "train.run_dir": tmp_path / "run"}
    recipe = load_recipe("photos", [f"--{key}={path}" for key, path in paths.items()])
    for _ in range(2):
        said: list[str] = []
        prepare_data(recipe, said.append)
        assert any("36 validation images are also a training image" in line for line in said)
        monkeypatch.setattr(prepare, "content_ids", lambda *_: pytest.fail("compared again"))
