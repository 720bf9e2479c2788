"""libturbojpeg bindings that can be called from njit code.

The pixels come from libjpeg's accurate integer DCT with "fancy" chroma upsampling, the same as Pillow's. Numba resolves
the functions by name when it loads compiled code, so callers can be cached on disk (`cache=True`).

Two threads must not use a handle at once: open one per thread and pass handles[thread] to the loop.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
from pathlib import Path
from typing import Any

import llvmlite.binding
import numpy as np
from numba import types
from numba.core.typing import Signature

from beton_tools.base.errors import UserError
from beton_tools.base.extras import INSTALL_TURBOJPEG
from beton_tools.base.jit import njit
from beton_tools.jpeg.markers import DAMAGED, OK, JpegError

# turbojpeg.h
_TJPF_RGB, _TJPF_GRAY = 0, 6
_TJXOP = {2: 1, 3: 6, 4: 2, 5: 3, 6: 5, 7: 4, 8: 7}  # Exif orientation -> how the image is turned to be upright
_PERFECT, _COPY_NONE = 1, 64  # fail where blocks at an edge are incomplete, and drop Exif and other application data
_TJSAMP = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2, "gray": 3, "4:4:0": 4, "4:1:1": 5}
_ACCURATE_DCT, _NO_REALLOC, _LIMIT_SCANS = 4096, 1024, 32768  # the last stops "scan bombs" after 500 scans
SUBSAMPLINGS = tuple(_TJSAMP)
MAX_SIDE = 65500  # libjpeg's JPEG_MAX_DIMENSION. The format allows 65535


BUNDLED = Path(__file__).with_name("libturbojpeg.so.0")  # in the wheels from .ci/wheels


def find_library() -> str | None:
    """Return libturbojpeg's name or path: this wheel's own, the system's, or an FFCV wheel's. None without any."""
    if BUNDLED.exists():
        return str(BUNDLED)
    of_system = ctypes.util.find_library("turbojpeg")
    if of_system is not None:
        return of_system
    return next((str(f) for p in sys.path for f in Path(p, "ffcv.libs").glob("libturbojpeg*.so*")), None)


def open_library() -> ctypes.CDLL:
    """Load libturbojpeg. Raises UserError if it is not installed."""
    try:
        return ctypes.CDLL(find_library() or "libturbojpeg.so.0")
    except OSError as error:
        raise UserError(f"cannot load libturbojpeg ({error}). Run: {INSTALL_TURBOJPEG}") from error


_library = open_library()
_library.tjInitDecompress.restype = ctypes.c_void_p
_library.tjInitCompress.restype = ctypes.c_void_p
_library.tjInitTransform.restype = ctypes.c_void_p
_library.tjFree.argtypes = [ctypes.c_void_p]
_library.tjDestroy.argtypes = [ctypes.c_void_p]
_library.tjGetErrorStr2.argtypes, _library.tjGetErrorStr2.restype = [ctypes.c_void_p], ctypes.c_char_p
_library.tjBufSize.restype = ctypes.c_ulong


def _external(name: str, signature: Signature) -> types.ExternalFunction:
    """Register a function with LLVM under a unique name, so that another loaded copy cannot take its place."""
    symbol = f"beton_tools_{name}"
    llvmlite.binding.add_symbol(symbol, ctypes.cast(getattr(_library, name), ctypes.c_void_p).value)
    return types.ExternalFunction(symbol, signature)


_decompress: Any = _external(
    "tjDecompress2",
    # handle, source, bytes, destination, width, pitch, height, pixel format, flags
    types.int32(
        types.intp, types.intp, types.uint64, types.intp,
        types.int32, types.int32, types.int32, types.int32, types.int32,
    ),
)  # fmt: skip


@njit(nogil=True)
def decompress(handle: int, jpeg: int, num_bytes: int, pixels: int, height: int, width: int) -> int:
    """Decode the JPEG at address `jpeg` into height*width*3 RGB bytes at address `pixels`. Returns OK or DAMAGED.

    height and width limit the bytes written, whatever size the file has. A library warning (it had to guess) counts as
    damage: files written by this package and by FFCV decode without warnings.
    """
    flags = _ACCURATE_DCT | _LIMIT_SCANS
    if _decompress(handle, jpeg, num_bytes, pixels, width, 3 * width, height, _TJPF_RGB, flags) != 0:
        return DAMAGED
    return OK


def open_decoders(count: int) -> np.ndarray:
    """Open `count` decoder handles (int64), one per thread. close_decoders frees them."""
    handles = [_library.tjInitDecompress() for _ in range(count)]
    if None in handles:
        raise MemoryError("libturbojpeg could not create a decoder")
    return np.array(handles, np.int64)


def close_decoders(handles: np.ndarray) -> None:
    """Free decoder handles and set them to zero, so that closing twice is harmless."""
    for handle in handles[handles != 0]:
        _library.tjDestroy(int(handle))
    handles[:] = 0


def compress(image: np.ndarray, quality: int, subsampling: str) -> bytes:
    """Encode (H, W, 3) RGB or (H, W) grey u8 as a baseline JPEG with standard Huffman tables."""
    image = np.ascontiguousarray(image)
    height, width = image.shape[:2]
    grey = image.ndim == 2
    sampling = _TJSAMP["gray" if grey else subsampling]
    capacity = _library.tjBufSize(width, height, sampling)
    out = np.empty(capacity, np.uint8)
    out_address, out_size = ctypes.c_void_p(out.ctypes.data), ctypes.c_ulong(capacity)
    handle = ctypes.c_void_p(_library.tjInitCompress())
    try:
        failure = _library.tjCompress2(
            handle, ctypes.c_void_p(image.ctypes.data), width, 0, height, _TJPF_GRAY if grey else _TJPF_RGB,
            ctypes.byref(out_address), ctypes.byref(out_size), sampling, quality, _ACCURATE_DCT | _NO_REALLOC,
        )  # fmt: skip
        if failure:
            raise JpegError(f"libturbojpeg cannot encode: {_library.tjGetErrorStr2(handle).decode()}")
    finally:
        _library.tjDestroy(handle)
    return out[: out_size.value].tobytes()


class _Transform(ctypes.Structure):
    """tjtransform in turbojpeg.h."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("x", "y", "w", "h", "op", "options")),
        *((name, ctypes.c_void_p) for name in ("data", "filter")),
    ]


def turn_upright(jpeg: bytes, orientation: int) -> bytes:
    """Turn a JPEG as its Exif orientation (2 to 8) says.

    The result is a baseline JPEG without Exif, with the same DCT coefficients.

    Raises:
        JpegError: The JPEG is damaged, or the turn would move an incomplete block from the right or bottom edge.
    """
    out, size = ctypes.c_void_p(), ctypes.c_ulong()
    transform = _Transform(op=_TJXOP[orientation], options=_PERFECT | _COPY_NONE)
    handle = ctypes.c_void_p(_library.tjInitTransform())
    try:
        failure = _library.tjTransform(
            handle, jpeg, ctypes.c_ulong(len(jpeg)), 1, ctypes.byref(out), ctypes.byref(size), ctypes.byref(transform),
            _LIMIT_SCANS,
        )  # fmt: skip
        if failure:
            raise JpegError(f"libturbojpeg cannot rotate it: {_library.tjGetErrorStr2(handle).decode()}")
        return ctypes.string_at(out, size.value)
    finally:
        _library.tjFree(out)
        _library.tjDestroy(handle)
