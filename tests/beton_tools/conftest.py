"""Real photographs from scikit-image and scikit-learn, as the folders, tars and parquets that people have."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import skimage
import sklearn.datasets
from PIL import Image

_SKIMAGE = Path(skimage.__file__).parent / "data"
_SKLEARN = Path(sklearn.datasets.__file__).parent / "images"


def photograph(name: str) -> Image.Image:
    """A packaged photograph, e.g. "chelsea.png", "china.jpg", "retina.jpg"."""
    folder = _SKLEARN if name in ("china.jpg", "flower.jpg") else _SKIMAGE
    return Image.open(folder / name)


def jpeg_of(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 92, **options})
    return buffer.getvalue()


def crops(name: str, count: int, seed: int = 0) -> list[Image.Image]:
    """`count` random crops of a photograph, 40 to 160 pixels a side."""
    image, rng = photograph(name).convert("RGB"), np.random.default_rng(seed)
    boxes = []
    for _ in range(count):
        width, height = rng.integers(40, 160, 2)
        x, y = rng.integers(0, image.width - width), rng.integers(0, image.height - height)
        boxes.append((x, y, x + width, y + height))
    return [image.crop(box) for box in boxes]


WNIDS = {
    "n01440764": "coffee.png",
    "n02123045": "chelsea.png",
    "n04008634": "rocket.jpg",
}  # class -> photograph


@pytest.fixture(scope="session")
def photo_jpegs() -> dict[str, list[bytes]]:
    """wnid -> eight small JPEGs cut from one photograph: 4:2:0, 4:4:4 and 4:2:2 in turn."""
    return {
        wnid: [jpeg_of(crop, subsampling=(2, 0, 1)[i % 3]) for i, crop in enumerate(crops(name, 8))]
        for wnid, name in WNIDS.items()
    }


@pytest.fixture
def photo_folder(tmp_path: Path, photo_jpegs: dict[str, list[bytes]]) -> Path:
    """<wnid>/<wnid>_<i>.JPEG"""
    root = tmp_path / "photos"
    write_folder(root, photo_jpegs)
    return root


def write_folder(root: Path, jpegs: dict[str, list[bytes]]) -> None:
    for wnid, images in jpegs.items():
        (root / wnid).mkdir(parents=True)
        for i, data in enumerate(images):
            (root / wnid / f"{wnid}_{i}.JPEG").write_bytes(data)
