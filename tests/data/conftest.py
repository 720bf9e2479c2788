"""Small `.beton` files of real photographs, as FFCV's own writer and ours leave them."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NUM_SAMPLES = 44
NUM_CLASSES = 5


def _variants(photographs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Photographs cut to many sizes, odd ones among them."""
    rng = np.random.default_rng(0)
    images = []
    for i in range(NUM_SAMPLES):
        photograph = list(photographs.values())[i % len(photographs)]
        h, w = (int(rng.integers(60, min(side, 400))) for side in photograph.shape[:2])
        images.append(np.ascontiguousarray(photograph[:h, :w]))
    return images


@pytest.fixture(scope="session")
def images(photographs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return _variants(photographs)


class _Dataset:
    def __init__(self, images: list[np.ndarray]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return self.images[i], i % NUM_CLASSES


@pytest.fixture(scope="session")
def stock_beton(images: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`stock_beton(mode)`: the images as FFCV's writer stores them in that mode; label i % NUM_CLASSES."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    folder = tmp_path_factory.mktemp("stock")

    def write(mode: str) -> Path:
        path = folder / f"{mode}.beton"
        if not path.exists():
            fields = {"image": RGBImageField(write_mode=mode), "label": IntField()}
            DatasetWriter(str(path), fields, page_size=1 << 21, num_workers=1).from_indexed_dataset(_Dataset(images))
        return path

    return write


@pytest.fixture(scope="session")
def indexed_beton(images: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images as our writer stores them: JPEGs with a crop index, a manifest beside the file."""
    from beton_tools.sources import open_source
    from beton_tools.write.writer import WriteOptions, write_beton

    folder = tmp_path_factory.mktemp("indexed")
    for i, image in enumerate(images):
        path = folder / "images" / f"class{i % NUM_CLASSES}" / f"{i:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_jpeg(image))
    write_beton(folder / "indexed.beton", open_source(folder / "images"), WriteOptions(workers=0))
    return folder / "indexed.beton"


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
