"""A `.beton` that another program changes while a loader reads it."""

import os
import shutil
from pathlib import Path

import pytest

from beton_tools.base.errors import UserError
from beton_tools.read.format import Beton
from fastft.augment.policies import AugmentPolicy
from fastft.data.loader import EvalLoader, TrainLoader
from fastft.data.stage import Output, SampleError


@pytest.fixture
def copy(indexed_beton: Path, tmp_path: Path) -> Path:
    path = tmp_path / "copy.beton"
    shutil.copy(indexed_beton, path)
    return path


def loader_of(path: Path) -> EvalLoader:
    return EvalLoader(path, AugmentPolicy("none"), Output(32), batch_size=4, workers=1, batches_ahead=1)


@pytest.mark.parametrize("left", [0, 0.5])
def test_a_truncated_file_is_an_error_that_names_it(copy, left):
    """Reading a truncated memory map would end this process with SIGBUS."""
    with loader_of(copy) as loader, pytest.raises(UserError, match=f"^{copy}: changed while it was in use"):
        for batch in loader:
            if batch.step == 0:
                os.truncate(copy, int(left * copy.stat().st_size))


def test_a_file_that_was_overwritten_is_not_called_damaged(copy):
    """Same size, other contents: the samples do not decode, and the reason is the change."""
    with loader_of(copy) as loader, pytest.raises(UserError, match="changed while it was in use") as caught:
        for batch in loader:
            if batch.step == 0:
                with copy.open("r+b") as file:
                    file.seek(Beton.open(copy).data_start)
                    file.write(b"\0" * (copy.stat().st_size // 2))
    assert not isinstance(caught.value, SampleError)


def test_another_file_under_the_same_name_does_not_change_a_pass(copy, stock_beton, indexed_beton):
    """Files are replaced by renaming; the loader keeps the file that it opened."""
    with loader_of(copy) as loader, loader_of(indexed_beton) as original:
        for batch, expected in zip(loader, original, strict=True):
            assert (batch.images == expected.images).all()
            if batch.step == 0:
                replacement = copy.with_suffix(".new")
                shutil.copy(stock_beton("jpg"), replacement)
                replacement.replace(copy)


def test_a_file_that_changed_between_two_passes_is_refused(copy):
    with loader_of(copy) as loader:
        list(loader)
        with copy.open("r+b") as file:
            file.write(b"\2")
        with pytest.raises(UserError, match="changed while it was in use"):
            list(loader)


def test_a_disk_that_fails_is_an_error_that_names_the_file(copy):
    with loader_of(copy) as loader:
        first = next(batches := iter(loader))
        assert len(first.ids) == 4
        folder = os.open(copy.parent, os.O_RDONLY)
        os.dup2(folder, loader.betons.files[0].descriptor)  # reading a directory fails with EISDIR
        os.close(folder)
        with pytest.raises(UserError, match=rf"{copy}: cannot be read \(Is a directory\)"):
            list(batches)


def test_a_loader_that_is_refused_leaves_no_file_open(copy):
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(UserError, match="do not fill one batch"):
        TrainLoader(copy, AugmentPolicy("none"), Output(32), batch_size=64)
    assert set(Path("/proc/self/fd").iterdir()) <= before
