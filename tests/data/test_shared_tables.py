"""Opened files in another process: tables are mapped, not copied; images are read through descriptors of its own."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from beton_tools.base.errors import UserError
from beton_tools.base.shared_arrays import share_arrays
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.parts import Part
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from tests.data.test_loader import collect, train_loader


@pytest.fixture(scope="module")
def pattern(indexed_beton: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("shared") / "train.beton"
    for number in (1, 2, 3):
        convert_folder(indexed_beton.parent / "images", out, WriteOptions(workers=0, part=Part(number, 3)))
    return str(out.parent / "*.beton")


def mapped(betons: BetonSet) -> BetonSet:
    shared = share_arrays(betons)
    try:
        return shared.map()
    finally:
        shared.close()


@pytest.mark.parametrize("kind", ["one file", "parts", "some samples"])
def test_mapped_files_give_the_same_batches_from_one_copy_of_their_tables(indexed_beton, pattern, kind):
    own = BetonSet.open(indexed_beton if kind == "one file" else pattern)
    if kind == "some samples":
        own = own.take(np.arange(0, len(own), 2))
    content = own.content
    other = mapped(own)
    assert other.__dict__["content"] == content  # it is not computed again
    assert other.metadata.tobytes() == own.metadata.tobytes() and np.array_equal(other.sizes, own.sizes)
    assert not other.metadata.flags.owndata and not other.metadata.flags.writeable
    assert not set(other.descriptors) & set(own.descriptors)
    if kind != "some samples":
        assert all(np.shares_memory(file.metadata, other.metadata) for file in other.files)
        assert all(np.shares_memory(file.sizes, other.sizes) for file in other.files)
        assert sum(len(file) for file in other.files) == len(other)
    assert other.read_bytes(7) == own.read_bytes(7) and other.locate(7)[1] == own.locate(7)[1]
    with train_loader(own) as first, train_loader(other) as second:
        assert collect(first) == collect(second)


def test_a_file_that_changes_before_it_is_mapped_is_refused(pattern, tmp_path):
    path = tmp_path / "x.beton"
    path.write_bytes(Path(pattern.replace("*", "train-1-of-3")).read_bytes())
    shared = share_arrays(BetonSet.open(path))
    later = time.time() + 5
    os.utime(path, (later, later))
    with pytest.raises(UserError, match="changed while it was in use"):
        shared.map()
    shared.close()
