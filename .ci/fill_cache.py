"""Train one epoch on generated photographs, so that Numba's cache has the code that conversion and training need.

usage: fill_cache.py [PHOTOGRAPHS PER CLASS]     6 for the shortest training that shows that an installation works
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

PER_CLASS, SIDE = int(sys.argv[1]) if len(sys.argv) > 1 else 40, 64
BATCH = min(16, PER_CLASS)

with tempfile.TemporaryDirectory() as folder:
    for name in ("a", "b"):
        Path(folder, "photos", name).mkdir(parents=True)
        for number in range(PER_CLASS):
            pixels = np.random.default_rng((ord(name), number)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize((SIDE, SIDE))
            image.save(Path(folder, "photos", name, f"{number}.jpg"))
    fastft = [sys.executable, "-m", "fastft"]
    options = [
        "--model.arch=timm/vit_tiny_patch16_224", "--model.weights=random", "--model.image_size=32", "--train.device=cpu",
        "--schedule.epochs=1", "--schedule.warmup_epochs=0", f"--optim.batch_size={BATCH}",
        "--augment.policy=rand-m9-mstd0.5-inc1",
    ]  # fmt: skip
    subprocess.run(
        [*fastft, "train", "photos", f"--data.train={folder}/photos", f"--train.run_dir={folder}/run", *options],
        check=True,
    )
    subprocess.run([*fastft, "doctor"], check=False)  # 1: no GPU here
