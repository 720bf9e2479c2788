"""Fixtures: real images, packaged or from the ImageNet sample if it is on this machine, and a tiny run."""

import json
import math
import os
import random
import resource
import signal
import time
import unittest.mock
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import SLOW_SECONDS

# shells start background jobs with SIGINT ignored, nohup ignores SIGHUP, and the commands under test would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")  # FFCV's OpenCV would nest threads in the loader's


STARTED = time.monotonic()
TORCH_THREADS: list[int] = []  # how many torch has at the start
OUTPUTS = ("build", "dist", "runs", "fastft.egg-info")  # of commands that may run meanwhile

# One process compiles the loader with the first of these; the other meanwhile runs tests that compile little.
FIRST = ("data/test_loader.py", "model", "recipe", "optim", "cost", "cli", "train", "data")


def pytest_collection() -> None:
    """Imports FFCV before any test does, as it leaves torch with one thread; not in xdist's process that hands out the tests.

    On a borrowed card, tests/gpu runs without FFCV.
    """
    import torch

    threads = torch.get_num_threads()
    # its dictionary of two image modes compiles for four seconds
    with unittest.mock.patch("numba.typed.Dict", dict), suppress(ImportError):
        import ffcv  # noqa: F401
    torch.set_num_threads(threads)
    TORCH_THREADS.append(threads)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", "")  # the same in all processes of a run

    def place(item: pytest.Item) -> float:
        if math.isfinite(SLOW_SECONDS):
            return random.Random(f"{run}{item.path}").random()
        return next((k for k, path in enumerate(FIRST) if f"/tests/{path}" in str(item.path)), len(FIRST))

    items.sort(key=place)


def pytest_runtest_setup(item: pytest.Item) -> None:
    import torch

    # an earlier test may have changed them, and weights would differ in last bits
    if torch.get_num_threads() != TORCH_THREADS[0]:
        torch.set_num_threads(TORCH_THREADS[0])
    if time.monotonic() - STARTED > SLOW_SECONDS and item.get_closest_marker("slow"):
        pytest.skip(f"{item.location[0]}: not started, as FASTFT_SLOW_SECONDS={SLOW_SECONDS:.0f} have passed")


@pytest.fixture(scope="session", autouse=True)
def clean_tree() -> Iterator[None]:
    """No test may leave a file at the top of the repository, where it would be committed by accident."""
    top = Path(__file__).parent.parent
    before = set(top.iterdir())
    yield
    left = sorted(path.name for path in set(top.iterdir()) - before if path.name not in OUTPUTS and path.name[0] != ".")
    assert not left, f"tests wrote into the repository: {left}"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[Sequence[object]], str]:
    """`refused(command)`: the line of a fastft command that ends with exit code 2 and prints nothing else to stderr."""
    from fastft.cli import main

    def run(command: Sequence[object]) -> str:
        capsys.readouterr()
        assert main([str(word) for word in command]) == 2
        error = capsys.readouterr().err
        assert error.strip().count("\n") == 0, error
        return error

    return run


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """`with full_disk(300)`: no file can grow beyond so many bytes, which is an error like that of a full disk."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)

    return limited


@pytest.fixture(scope="session")
def imagenet_sample() -> Path:
    """Folder of real ImageNet training images, `<wnid>/*.JPEG`."""
    folder = Path(os.environ.get("FASTFT_IMAGENET_SAMPLE", "../shared/data/imagenet-sample"))
    if not folder.is_dir():
        pytest.skip("no ImageNet sample. Set FASTFT_IMAGENET_SAMPLE to a folder of <wnid>/*.JPEG")
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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, photographs) -> dict[str, str]:
    """Overrides for a tiny run: 48 training and 20 validation crops of two photographs, a 2-block tower at 32 px."""
    from beton_tools.write.convert import convert_folder
    from beton_tools.write.writer import WriteOptions

    folder = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 10)):
        for name in ("astronaut", "coffee"):
            (folder / split / name).mkdir(parents=True)
            image = photographs[name]
            for i in range(count):
                y, x = (int(rng.integers(0, n - 64)) for n in image.shape[:2])
                Image.fromarray(image[y : y + 64, x : x + 64]).save(folder / split / name / f"{i:02}.jpg", quality=95)
        convert_folder(folder / split, folder / f"{split}.beton", WriteOptions(workers=0))
    arch = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    }
    (folder / "arch.json").write_text(json.dumps(arch))
    return {
        "data.train": str(folder / "train.beton"), "data.val": str(folder / "val.beton"), "data.num_classes": "2",
        "model.arch": str(folder / "arch.json"), "model.weights": "random", "model.image_size": "32",
        "optim.batch_size": "8", "schedule.epochs": "3", "schedule.warmup_epochs": "1", "train.amp": "fp32",
        "train.log_every": "1", "train.device": "cpu", "train.checkpoint_steps": "2", "optim.lr": "1e-3",
        "ema.decay": "0.9", "ema.reference_batch": "8",
    }  # fmt: skip


@pytest.fixture(scope="session")
def whole(tiny, tmp_path_factory) -> Path:
    """A run that nothing interrupted, with stochastic depth, so that torch's generator matters."""
    from tests.train.runs import run

    folder = tmp_path_factory.mktemp("whole")
    run(tiny, folder, model__drop_path="0.3")
    return folder
