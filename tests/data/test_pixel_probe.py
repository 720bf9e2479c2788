"""The check of the loader's images that `fastft doctor` makes."""

import pytest

from fastft.data import pixel_probe
from fastft.data.loader import EvalLoader


def test_the_loaders_images_are_pillows_here() -> None:
    assert pixel_probe.probe() <= pixel_probe.TOLERANCE


def test_a_loader_that_repeats_the_first_row_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row equals the first one, as with Numba 0.68 on Python 3.12."""

    class Repeats(EvalLoader):
        def __iter__(self):
            for batch in super().__iter__():
                batch.images[:] = batch.images[:, :, :1]
                yield batch

    monkeypatch.setattr(pixel_probe, "EvalLoader", Repeats)
    with pytest.raises(SystemExit, match=r"differ from Pillow's by \d+ of 255"):
        pixel_probe.main()
