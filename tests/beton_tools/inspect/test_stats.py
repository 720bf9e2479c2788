"""The numbers of `beton stats`."""

import pytest

from beton_tools.base.errors import UserError
from beton_tools.inspect.extract import choose_samples
from beton_tools.inspect.stats import compute
from beton_tools.read.format import Beton
from beton_tools.read.manifest import Manifest
from beton_tools.sources import open_source
from beton_tools.write.writer import WriteOptions, write_beton


def test_a_class_without_images_counts_and_is_named_when_it_is_asked_for(photo_folder, tmp_path):
    for image in sorted(photo_folder.iterdir())[-1].iterdir():
        image.write_bytes(b"")
    path = tmp_path / "a.beton"
    write_beton(path, open_source(photo_folder), WriteOptions(workers=0, on_error="skip"))
    beton = Beton.open(path)
    found = compute(beton, Manifest.of_beton(path))
    assert found["num_classes"] == 3 and found["images_per_class"]["percentiles"]["0"] == 0
    with pytest.raises(UserError, match="no such samples; `beton info --json` lists the classes"):
        choose_samples(beton, None, 2, None)
