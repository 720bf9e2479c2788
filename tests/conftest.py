"""Real images for every test: packaged photographs, and the ImageNet sample where it lies on this machine."""

import os
from pathlib import Path

import numpy as np
import pytest

import fastft.data  # noqa: F401  before any test imports FFCV, which would leave torch with one thread here

os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")  # FFCV's OpenCV would nest threads in the loader's


@pytest.fixture(scope="session")
def imagenet_sample() -> Path:
    """Folder of real ImageNet training images, `<wnid>/*.JPEG`."""
    folder = Path(os.environ.get("FASTFT_IMAGENET_SAMPLE", "../shared/data/imagenet-sample"))
    if not folder.is_dir():
        pytest.skip("no ImageNet sample; set FASTFT_IMAGENET_SAMPLE to a folder of <wnid>/*.JPEG")
    return folder


@pytest.fixture(scope="session")
def photographs() -> dict[str, np.ndarray]:
    """Real colour photographs by name, (H, W, 3) uint8 of different sizes."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    images = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
    samples = load_sample_images()
    images |= {Path(n).stem: i for n, i in zip(samples.filenames, samples.images, strict=True)}
    return {name: np.ascontiguousarray(image[..., :3]) for name, image in images.items()}
