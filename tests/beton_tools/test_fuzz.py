"""Fuzz targets: whatever bytes a `.beton` or a manifest consists of, it is read, or is one line; never another exception.

Both start from the valid files in `corpus/` and change them.
"""

import contextlib
import io
import json
from pathlib import Path

import pytest
from hypothesis import strategies as st

from beton_tools import UserError, cli
from beton_tools.base.console import printable
from beton_tools.read.format import Beton
from beton_tools.read.manifest import Manifest, manifest_path
from beton_tools.write.images import decode_sample
from tests.beton_tools.fuzzing import damaged, fuzz_target

CORPUS = Path(__file__).with_name("corpus")
BETONS = [path.read_bytes() for path in sorted(CORPUS.glob("*.beton"))]
MANIFESTS = [path.read_bytes() for path in sorted(CORPUS.glob("*.json"))]


def in_one_line(error: UserError) -> bool:
    return "\n" not in printable(str(error)) and len(str(error)) < 2000


# .beton ---------------------------------------------------------------------------------------------------------------

# header, descriptors, metadata and JPEG headers; the end of the allocation table
ANY_BETON = st.one_of(
    damaged(BETONS, 0, 24, (0, 255)), damaged(BETONS, 0, 5400, (0, 255)), damaged(BETONS, -72, -1, (0, 255))
)


def read_everything(path: Path) -> None:
    beton = Beton.open(path)
    for i in range(min(len(beton), 20)):
        assert len(beton.read_bytes(i)) == beton.sizes[i]
        try:
            pixels = decode_sample(beton, i)
        except UserError as error:
            assert in_one_line(error)
        else:
            assert pixels.shape == (beton.heights[i], beton.widths[i], 3)


def check_beton(folder: Path, data: bytes) -> None:
    path = folder / "x.beton"
    path.write_bytes(data)
    try:
        read_everything(path)
    except UserError as error:
        assert in_one_line(error)
        assert str(path) in str(error)


@pytest.mark.parametrize("data", BETONS)
def test_the_corpus_is_valid(tmp_path, data):
    (tmp_path / "x.beton").write_bytes(data)
    read_everything(tmp_path / "x.beton")


test_any_beton_is_read_or_refused, test_100_000_betons = fuzz_target(check_beton, ANY_BETON)


# manifest -------------------------------------------------------------------------------------------------------------


def use_everything(path: Path) -> None:
    manifest = Manifest.load(path)
    json.dumps(manifest.summary())
    assert manifest.checksum
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        cli._print_manifest(manifest)
    assert all(line.isprintable() for line in shown.getvalue().split("\n"))
    manifest.save(path)
    assert Manifest.load(path) == manifest
    assert len(list(manifest.names)) == manifest.num_samples


def check_manifest(folder: Path, data: bytes) -> None:
    path = manifest_path(folder / "x.beton")
    path.write_bytes(data)
    try:
        use_everything(path)
    except UserError as error:
        assert in_one_line(error)


ANY_MANIFEST = damaged(MANIFESTS, 0, 1000, tuple(b'"{}[]:,-.0e\\'))
test_any_manifest_is_read_or_refused, test_100_000_manifests = fuzz_target(check_manifest, ANY_MANIFEST)
