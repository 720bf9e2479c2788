"""One source image in, one JPEG for the `.beton` out: kept as it is where possible, re-encoded once where
not."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

# Pillow may open nothing else: its EPS reader would start Ghostscript on a file that merely looks like an
# image
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
_SUBSAMPLINGS = {
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
}
SUBSAMPLINGS = tuple(_SUBSAMPLINGS)
MAX_SIDE = 65535  # width and height are 16 bits in a .beton, and in a JPEG
KEPT = "kept"


class BadImage(Exception):
    """An image that cannot be stored; the message is the reason, without the image's name."""


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How images are stored.

    max_resolution: longest side in pixels; larger images are shrunk (antialiased), None keeps every size.
    quality, subsampling: of what is re-encoded. lossless: keep the coefficients of JPEGs that fit as they
    are.
    """

    max_resolution: int | None = None
    quality: int = 90  # FFCV's default, and the paper's files
    subsampling: str = "4:2:0"
    lossless: bool = True
    index: bool = True


@dataclass(frozen=True, slots=True)
class EncodedImage:
    data: bytes
    height: int
    width: int
    how: str  # KEPT, or why it was re-encoded: "resized", "PNG", "CMYK", "progressive", ...


def encode_sample(data: bytes, options: EncodeOptions) -> EncodedImage:
    """Raises BadImage when the bytes are no image that can be decoded whole."""
    if not data:
        raise BadImage("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd EXIF and palettes, which change no pixel
        return _encode(data, options)


def _encode(data: bytes, options: EncodeOptions) -> EncodedImage:
    pixels, form = _decode(data)
    shrunk = shrink(pixels, options.max_resolution)
    if shrunk is pixels and form == "JPEG" and options.lossless:
        return EncodedImage(data, pixels.shape[0], pixels.shape[1], KEPT)
    how = "resized" if shrunk is not pixels else form
    return EncodedImage(_encode_jpeg(shrunk, options), shrunk.shape[0], shrunk.shape[1], how)


def _decode(data: bytes) -> tuple[np.ndarray, str]:
    """RGB pixels (H, W, 3) uint8 as timm's and torchvision's loaders see them, and the format or odd mode."""
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        form = image.format or "image"
        if form in ("JPEG", "MPO"):
            form = "JPEG" if image.mode in ("RGB", "L") else image.mode
            form = "progressive" if image.info.get("progressive") else form
        if max(image.size) > MAX_SIDE:
            raise BadImage(f"{image.width} x {image.height} pixels are more than {MAX_SIDE} a side")
        return np.asarray(image.convert("RGB")), form
    except BadImage:
        raise
    except Exception as error:  # Pillow's plug-ins raise nearly anything on damaged data
        raise BadImage(
            f"cannot be decoded ({str(error) or type(error).__name__})".replace("\n", " ")
        ) from error


def shrink(pixels: np.ndarray, max_resolution: int | None) -> np.ndarray:
    """(H, W, 3) uint8 with its longest side at most max_resolution; area interpolation and sizes as FFCV's
    writer."""
    height, width = pixels.shape[:2]
    longest = max(height, width)
    if max_resolution is None or longest <= max_resolution:
        return pixels
    size = (max(1, width * max_resolution // longest), max(1, height * max_resolution // longest))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _encode_jpeg(pixels: np.ndarray, options: EncodeOptions) -> bytes:
    flags = [cv2.IMWRITE_JPEG_QUALITY, options.quality]
    flags += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, _SUBSAMPLINGS[options.subsampling]]
    ok, jpeg = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), flags)
    if not ok:
        raise BadImage("cannot be encoded as JPEG")
    return jpeg.tobytes()
