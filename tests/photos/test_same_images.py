"""Images that are in several .beton files are found, also where one stores them smaller."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beton_tools.read.beton_set import BetonSet
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.photos import same_images
from fastft.photos.prepare import prepare_data
from fastft.photos.same_images import ids_at_one_size
from fastft.recipe import load_recipe


@pytest.fixture(scope="module")
def large(photographs: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four JPEGs of two classes, two of them larger than 500 px, and a PNG."""
    folder = tmp_path_factory.mktemp("large")
    for name in ("astronaut", "coffee"):
        (folder / name).mkdir()
        image = Image.fromarray(photographs[name])
        image.resize((640, 560)).save(folder / name / "large.jpg", quality=92)
        image.resize((90, 80)).save(folder / name / "small.jpg")
    image.resize((640, 560)).save(folder / "coffee" / "large.png")
    return folder


def converted(folder: Path, path: Path, limit: int | None) -> BetonSet:
    convert_folder(folder, path, WriteOptions(workers=0, max_resolution=limit))
    return BetonSet.open(path)


def test_a_file_of_originals_and_one_of_smaller_copies_have_the_same_jpegs(
    large: Path, tmp_path: Path
) -> None:
    originals, copies = (converted(large, tmp_path / f"{limit}.beton", limit) for limit in (None, 500))
    for sets in ([originals, copies], [copies, originals]):
        first, second = ids_at_one_size(sets)
        names = sets[0].read_names()
        assert names is not None
        assert {names[i] for i in np.flatnonzero(~np.isin(first, second))} == {"coffee/large.png"}
        assert len(np.unique(first)) == 5


def test_a_manifest_that_was_changed_by_hand_is_one_without_a_limit(large: Path, tmp_path: Path) -> None:
    originals = converted(large, tmp_path / "a.beton", None)
    converted(large, tmp_path / "b.beton", 500)
    manifest = tmp_path / "b.beton.manifest.json"
    manifest.write_text(manifest.read_text().replace('"quality": 90', '"quality": "fine"'))
    first, second = ids_at_one_size([originals, BetonSet.open(tmp_path / "b.beton")])
    assert np.isin(first, second).sum() == 2


def test_photographs_that_are_also_validated_on_are_a_warning_and_compared_once(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted(large, tmp_path / "val.beton", None)
    recipe = load_recipe(
        "photos",
        [
            f"--data.train={large}",
            f"--data.val={tmp_path / 'val.beton'}",
            f"--train.run_dir={tmp_path / 'run'}",
        ],
    )
    for _ in range(2):
        said: list[str] = []
        prepare_data(recipe, said.append)
        assert any("4 validation images are also a training image" in line for line in said)
        monkeypatch.setattr(same_images, "encode_in_order", lambda *_: pytest.fail("encoded again"))
