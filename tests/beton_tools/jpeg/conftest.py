"""JPEGs made from real photographs, and a decoder with guarded memory."""

import ctypes
import io
import mmap
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from beton_tools.jpeg import close_decoders, decode_region, open_decoders
from beton_tools.jpeg.markers import scan_header
from beton_tools.jpeg.turbo import SUBSAMPLINGS, compress
from tests.beton_tools.fuzzing import untimed

GUARD = 64  # bytes after every output that must not change


@pytest.fixture(params=SUBSAMPLINGS)
def subsampling(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def jpeg(photographs: dict[str, np.ndarray]) -> Callable[..., bytes]:
    """jpeg(height, width, subsampling, quality): a piece of a photograph as a plain JPEG."""

    def make(height: int, width: int, subsampling: str = "4:2:0", quality: int = 90) -> bytes:
        return compress(photographs["coffee"][100 : 100 + height, 150 : 150 + width], quality, subsampling)

    return make


class GuardedBytes:
    """Memory that ends at the last byte of a file: reading beyond it kills the process."""

    def __init__(self, capacity: int) -> None:
        self._allocate(capacity)

    def _allocate(self, capacity: int) -> None:
        page = mmap.PAGESIZE
        self._map = mmap.mmap(-1, (-(-capacity // page) + 1) * page)
        self._memory = np.frombuffer(self._map, np.uint8)
        self._readable = self._memory[:-page]
        address = ctypes.c_void_p(self._memory.ctypes.data + self._readable.size)
        assert ctypes.CDLL(None).mprotect(address, ctypes.c_size_t(page), 0) == 0  # PROT_NONE

    def hold(self, file: bytes) -> np.ndarray:
        if len(file) > self._readable.size:  # a damaged header can make a large image of a small file
            self._allocate(len(file))
        place = self._readable[self._readable.size - len(file) :]
        place[:] = np.frombuffer(file, np.uint8)
        return place


@pytest.fixture
def guarded() -> Callable[[bytes], np.ndarray]:
    """guarded(file): the file as an array at the end of readable memory."""
    return GuardedBytes(1 << 20).hold


@pytest.fixture
def decode() -> Iterator[Callable[..., tuple[int, np.ndarray]]]:
    """decode(jpeg, y, x, h, w, scratch=None): code and pixels of decode_region.

    A byte written after the output or the scratch memory fails the test; a byte read after the file kills it.
    """
    handle, source = open_decoders(1), GuardedBytes(1 << 20)

    def run(jpeg: bytes, y: int, x: int, h: int, w: int, scratch: int = 1 << 20) -> tuple[int, np.ndarray]:
        with untimed():
            out = np.full(3 * max(h, 0) * max(w, 0) + GUARD, 7, np.uint8)
            memory = np.full(scratch + GUARD, 7, np.uint8)
        head = scan_header(file := source.hold(jpeg))
        code = head.code or decode_region(file, head, y, x, h, w, out[:-GUARD], memory[:scratch], handle[0])
        assert (out[-GUARD:] == 7).all() and (memory[scratch:] == 7).all()
        return code, out[:-GUARD].reshape(max(h, 0), max(w, 0), 3)

    yield run
    close_decoders(handle)


def pillow(jpeg: bytes) -> np.ndarray:
    """The file decoded by Pillow, (H, W, 3) u8."""
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
