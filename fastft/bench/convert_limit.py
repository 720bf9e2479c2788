"""An upper bound for the throughput of conversion: libjpeg-turbo alone, on files in memory."""

import ctypes
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np

from beton_tools.jpeg.turbo import compress, open_library
from fastft.bench.child import Arm
from fastft.bench.limits import CHANNELS, Rates, at_limit


def convert_limits(root: str, workers: int, sides: dict[str, int | None], quality: int) -> dict[str, Arm]:
    """libjpeg-turbo alone, on files in memory: its lossless transformation, or decode, resize and encode."""
    files = [path.read_bytes() for path in sorted(Path(root).glob("*/*"))]

    def arm(side: int | None) -> Arm:
        def run() -> dict[str, float]:
            return at_limit(len(files), sum(_conversion_seconds(files, side, quality)), workers)

        return run

    return {name: arm(side) for name, side in sides.items()}


def _conversion_seconds(files: list[bytes], side: int | None, quality: int) -> Iterator[float]:
    """CPU seconds of each file; larger images than `side` are decoded, resized to it and encoded."""
    from PIL import Image

    rates, transform = Rates(), _Transform()
    for file in files:
        width, height = Image.open(BytesIO(file)).size
        scale = 1.0 if side is None else min(1.0, side / max(width, height))
        if scale == 1.0:
            yield transform.seconds(file)
            continue
        before = time.process_time()
        image = Image.open(BytesIO(file)).convert("RGB")
        decode = time.process_time() - before
        small = np.asarray(image.resize((round(width * scale), round(height * scale))))
        before = time.process_time()
        compress(small, quality, "4:2:0")
        encode = time.process_time() - before
        yield decode + encode + rates.copy(CHANNELS * width * height * (1 + scale**2))


class _Transform:
    """libjpeg-turbo's lossless transformation without a change: reads and writes the coefficients of a JPEG."""

    class _Options(ctypes.Structure):
        _fields_ = (
            ("region", ctypes.c_int * 4), ("op", ctypes.c_int), ("options", ctypes.c_int),
            ("data", ctypes.c_void_p), ("filter", ctypes.c_void_p),
        )  # fmt: skip

    def __init__(self) -> None:
        self._library = open_library()
        self._library.tjInitTransform.restype = ctypes.c_void_p
        self._handle = ctypes.c_void_p(self._library.tjInitTransform())

    def seconds(self, jpeg: bytes) -> float:
        """CPU seconds of a file; 0 of one that is not a JPEG, so that the limit stays a limit."""
        out, size, options = ctypes.c_void_p(), ctypes.c_ulong(), self._Options()
        before = time.process_time()
        failure = self._library.tjTransform(
            self._handle, jpeg, ctypes.c_ulong(len(jpeg)), 1, ctypes.byref(out), ctypes.byref(size),
            ctypes.byref(options), 0,
        )  # fmt: skip
        seconds = time.process_time() - before
        self._library.tjFree(out)
        return 0.0 if failure else seconds
