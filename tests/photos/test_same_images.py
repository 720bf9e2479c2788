"""Two images are the same if the bytes of their files are."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beton_tools.read.beton_set import BetonSet
from beton_tools.sources import Source, open_source
from beton_tools.write.writer import WriteOptions, write_beton
from fastft.photos.old_split import NEW, TRAIN, VAL, OldSplit
from fastft.photos.same_images import as_source, content_ids, contents, old_contents


@pytest.fixture
def bitmaps(tmp_path: Path) -> Source:
    """Bitmaps with a black border: all have the same size and the same end."""
    for kind in ("a", "b"):
        (tmp_path / "bmp" / kind).mkdir(parents=True)
        for i in range(4):
            pixels = np.zeros((32, 32, 3), np.uint8)
            pixels[4:28, 4:28] = np.random.default_rng([ord(kind), i]).integers(0, 256, (24, 24, 3))
            Image.fromarray(pixels).save(tmp_path / "bmp" / kind / f"{i}.bmp")
    return open_source(tmp_path / "bmp")


def test_bitmaps_with_equal_borders_are_different_images(bitmaps):
    assert len({*contents(bitmaps)}) == len({*content_ids([bitmaps])[0].tolist()}) == 8
    assert len({*old_contents(bitmaps)}) == 1


def test_a_beton_has_the_content_ids_of_its_source(bitmaps, tmp_path):
    write_beton(tmp_path / "a.beton", bitmaps, WriteOptions(workers=0, shuffle_seed=1))
    betons = BetonSet.open(tmp_path / "a.beton")
    by_name = dict(zip(bitmaps.names, contents(bitmaps), strict=True))
    assert contents(as_source(betons)) == [by_name[name] for name in betons.read_names() or ()]


@pytest.mark.parametrize("texts", [contents, old_contents], ids=["content ids", "before content ids"])
def test_a_split_is_kept_whichever_version_wrote_it(album, tmp_path, texts):
    source = open_source(album)
    sides = [VAL if i % 5 == 0 else TRAIN for i in range(len(source.names))]
    old = OldSplit(tmp_path, dict(zip(texts(source), sides, strict=True)), len(sides))
    assert old.sides(source).tolist() == sides
    Image.new("RGB", (64, 64)).save(tmp_path / "new.jpg")
    (tmp_path / "more" / "x").mkdir(parents=True)
    (tmp_path / "new.jpg").rename(tmp_path / "more/x/new.jpg")
    assert old.sides(open_source(tmp_path / "more")).tolist() == [NEW]
