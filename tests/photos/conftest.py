"""A folder of real photographs in three classes, with the odd things that such folders contain."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fastft.model import weights
from tests.written import write_crops

CLASSES = ("astronaut", "chelsea", "coffee")
PER_CLASS = 12


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of weights are checked, but nothing is fetched before photographs are converted."""
    monkeypatch.setattr("fastft.model.weights._fetch_tag", weights._describe_tag)


@pytest.fixture(scope="package", autouse=True)
def short_runs_are_used() -> Iterator[None]:
    """These runs are too short to be better than their probe. The rule for such runs: tests/run/test_chosen_weights.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastft.run.chosen_weights.FEW_STEPS", 0)
        yield


@pytest.fixture(scope="session")
def album(photographs, tmp_path_factory) -> Path:
    """`<class>/<number>.jpg`: crops of 64 x 64 pixels."""
    folder = tmp_path_factory.mktemp("album") / "photos"
    write_crops(folder, photographs, dict.fromkeys(CLASSES, PER_CLASS), suffix="jpg")
    return folder


@pytest.fixture(scope="session")
def tower(tiny) -> list[str]:
    """Flags of the tiny tower, for a run of two epochs on a CPU."""
    chosen = ("model.arch", "model.weights", "model.image_size", "train.amp", "train.device", "train.log_every")
    return [*(f"--{key}={tiny[key]}" for key in chosen), "--schedule.epochs=4", "--optim.batch_size=8"]
