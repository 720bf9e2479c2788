"""A run directory of an untrained model on six classes of real photographs."""

from pathlib import Path

import numpy as np
import pytest

from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from tests.written import make_checkpoint, write_crops


@pytest.fixture(scope="module")
def run_of_random_model(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, np.ndarray]) -> Path:
    """A run directory with a checkpoint of an untrained model, and six crops each of six photographs."""
    run = tmp_path_factory.mktemp("random") / "run"
    write_crops(run / "val", photographs, dict.fromkeys(photographs, 6), size=88)
    convert_folder(run / "val", run / "val.beton", WriteOptions(workers=0))
    options = {"data__val": run / "val.beton", "model__head_init_scale": 1.0, "train__amp": "fp32"}
    make_checkpoint(run.parent, {}, classes=sorted(photographs), **options)
    return run
