"""A folder of real photographs in three classes, with the odd things that such folders contain."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastft.model import weights

CLASSES = ("astronaut", "chelsea", "coffee")
PER_CLASS = 12


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of weights are checked, but nothing is fetched before photographs are converted."""
    monkeypatch.setattr("fastft.model.weights._fetch_tag", weights._describe_tag)


@pytest.fixture(scope="session")
def album(photographs, tmp_path_factory) -> Path:
    """`<class>/<number>.jpg`: crops of 64 x 64 pixels."""
    folder = tmp_path_factory.mktemp("album") / "photos"
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        image = photographs[name]
        for i in range(PER_CLASS):
            y, x = (int(rng.integers(0, n - 64)) for n in image.shape[:2])
            crop = Image.fromarray(image[y : y + 64, x : x + 64])
            crop.save(folder / name / f"{i:02}.jpg", quality=95)
    return folder


@pytest.fixture(scope="session")
def tower(tiny) -> list[str]:
    """Flags of the tiny tower, for a run of two epochs on a CPU."""
    chosen = ("model.arch", "model.weights", "model.image_size", "train.amp", "train.device", "train.log_every")
    return [*(f"--{key}={tiny[key]}" for key in chosen), "--schedule.epochs=4", "--optim.batch_size=8"]
