"""Train one epoch on generated photographs, so that Numba's cache has the code that conversion and training need."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

PER_CLASS, SIDE = 40, 64

with tempfile.TemporaryDirectory() as folder:
    for name in ("a", "b"):
        Path(folder, "photos", name).mkdir(parents=True)
        for number in range(PER_CLASS):
            pixels = np.random.default_rng((ord(name), number)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize((SIDE, SIDE))
            image.save(Path(folder, "photos", name, f"{number}.jpg"))
    fastft = [sys.executable, "-m", "fastft.cli"]
    options = [
        "--model.arch=timm/vit_tiny_patch16_224", "--model.weights=random", "--model.image_size=32", "--train.device=cpu",
        "--schedule.epochs=1", "--schedule.warmup_epochs=0", "--optim.batch_size=16", "--augment.policy=rand-m9-mstd0.5-inc1",
    ]  # fmt: skip
    subprocess.run(
        [*fastft, "train", "photos", f"--data.train={folder}/photos", f"--train.run_dir={folder}/run", *options],
        check=True,
    )
    subprocess.run([*fastft, "doctor"], check=False)  # 1: no GPU here
