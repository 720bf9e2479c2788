"""A package of the same form as the demo's photographs, with drawn cells."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

PER_KIND = 8


def write_wheel(path: Path) -> Path:
    """PER_KIND cells of each class, and some that the experts were unsure of; a defect is a dark bar."""
    rng = np.random.default_rng(0)
    rows, count = [], 0
    with zipfile.ZipFile(path, "w") as archive:
        for kind in ("mono", "poly"):
            for probability in ("0.0", "0.3333333333333333", "1.0"):
                for _ in range(PER_KIND):
                    pixels = rng.integers(120, 200 if kind == "mono" else 255, (60, 60), np.uint8)
                    if probability == "1.0":
                        pixels[20:40] = 0
                    image = io.BytesIO()
                    Image.fromarray(pixels).save(image, "PNG")
                    name = f"images/cell{count:04}.png"
                    archive.writestr(f"elpv_dataset/data/{name}", image.getvalue())
                    rows.append(f"{name} {probability} {kind}")
                    count += 1
        archive.writestr("elpv_dataset/data/labels.csv", "\n".join(rows))
    return path
