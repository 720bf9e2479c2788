"""One source image in, one JPEG for the `.beton` out: kept as it is where possible, re-encoded once where
not."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from beton_tools import jpeg
from beton_tools.errors import UserError
from beton_tools.format import DEFAULT_PAGE_SIZE, RAW_MODE, Beton
from beton_tools.jpeg.markers import DamagedJpeg, JpegError
from beton_tools.jpeg.transcode import add_index
from beton_tools.jpeg.turbo import MAX_SIDE, compress

# Pillow may open nothing else: its EPS reader would start Ghostscript on a file that merely looks like an
# image
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
SUBSAMPLINGS = ("4:2:0", "4:2:2", "4:4:4")
KEPT, DAMAGED = "kept", "damaged JPEG"


class BadImage(Exception):
    """An image that cannot be stored; the message is the reason, without the image's name."""


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How images are stored.

    max_resolution: longest side in pixels; larger images are shrunk (antialiased), None keeps every size.
    quality, subsampling: of what is re-encoded.
    lossless: keep the coefficients of JPEGs that fit as they are.
    index: give every JPEG a crop index.
    page_size: bytes of a page of the file, a power of two; larger JPEGs are re-encoded.
    """

    max_resolution: int | None = None
    quality: int = 90  # FFCV's default, and the paper's files
    subsampling: str = "4:2:0"
    lossless: bool = True
    index: bool = True
    page_size: int = DEFAULT_PAGE_SIZE


@dataclass(frozen=True, slots=True)
class EncodedImage:
    data: bytes
    height: int
    width: int
    how: str  # KEPT, or why it was re-encoded: "resized", "PNG", "CMYK JPEG", DAMAGED, ...


def encode_sample(data: bytes, options: EncodeOptions) -> EncodedImage:
    """Raises BadImage when the bytes are no image that Pillow decodes."""
    if not data:
        raise BadImage("empty file")
    try:
        kept = _keep(data, options) if options.lossless else None
    except DamagedJpeg:
        return replace(_reencode(data, options), how=DAMAGED)
    return kept or _reencode(data, options)


def warm_up() -> None:
    """Compile what encoding needs into numba's cache, so that workers load it rather than each compile it."""
    grey = np.zeros((16, 16, 3), np.uint8)
    encode_sample(_encode_jpeg(grey, EncodeOptions()), EncodeOptions())


def _reencode(data: bytes, options: EncodeOptions) -> EncodedImage:
    pixels, form = _decode(data)
    stored = shrink(pixels, options.max_resolution)
    how = form if stored is pixels or form == DAMAGED else "resized"
    if max(stored.shape) > MAX_SIDE:
        raise BadImage(
            f"{stored.shape[1]} x {stored.shape[0]} pixels are more than {MAX_SIDE} a side; give --max-resolution"
        )
    encoded = _encode_jpeg(stored, options)
    if len(encoded) > options.page_size:
        raise BadImage(
            f"{len(encoded)} bytes do not fit a page of {options.page_size}; give --max-resolution"
        )
    return EncodedImage(encoded, stored.shape[0], stored.shape[1], how)


def _keep(data: bytes, options: EncodeOptions) -> EncodedImage | None:
    """The same coefficients, re-cut for the index; None for what has to be decoded: no JPEG, too large, CMYK,
    progressive, or read by Pillow but not without a warning by the loader's decoder. Raises DamagedJpeg."""
    try:
        header = jpeg.parse(data)
        longest = max(header.height, header.width)
        if longest > min(options.max_resolution or MAX_SIDE, MAX_SIDE):
            return None
        stored = add_index(data)  # reads every code word, so that damage is found here even without index
        if not options.index:
            stored = data
    except DamagedJpeg:
        raise
    except JpegError:
        return None
    # a pixel takes the first segment only: do header and tables serve?
    if len(stored) > options.page_size or _decode_quietly(stored, (0, 0, 1, 1)) is None:
        return None
    return EncodedImage(stored, header.height, header.width, KEPT)


def _decode_quietly(data: bytes, region: tuple[int, int, int, int] | None = None) -> np.ndarray | None:
    """What libjpeg-turbo makes of a JPEG, which is what Pillow does; None where it has to warn or cannot."""
    try:
        return jpeg.decode_rgb(data, region)
    except JpegError:
        return None


def _decode(data: bytes) -> tuple[np.ndarray, str]:
    """RGB pixels (H, W, 3) uint8 as timm's and torchvision's loaders see them, and the format or odd mode.

    So samples of 16 bits are clipped to 255, not scaled, and what a damaged JPEG lacks is filled in.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd Exif and palettes, which change no pixel
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            is_jpeg = image.format in ("JPEG", "MPO")
            quiet = _decode_quietly(data) if is_jpeg else None  # the faster of the two
            pixels = np.asarray(image.convert("RGB")) if quiet is None else quiet
    except UnidentifiedImageError as error:  # its own text holds an address, another one in every run
        raise BadImage("cannot be decoded (not an image of a known format)") from error
    except Exception as error:  # Pillow's plug-ins raise nearly anything on damaged data
        reason = str(error) or type(error).__name__
        raise BadImage(f"cannot be decoded ({reason})".replace("\n", " ")) from error
    if not is_jpeg:
        depth = "16-bit " if image.mode.startswith("I;16") else ""
        return pixels, f"{depth}{image.format}"
    if quiet is None and _is_damaged(data):
        return pixels, DAMAGED
    return pixels, "progressive JPEG" if image.info.get("progressive") else f"{image.mode} JPEG"


def _is_damaged(data: bytes) -> bool:
    """Whether the scans of a JPEG are broken, of which Pillow says nothing; False for kinds that we cannot read."""
    for read_whole in (add_index, jpeg.decode_rgb):  # the first sees more, the second reads more kinds
        try:
            read_whole(data)
            return False
        except DamagedJpeg:
            return True
        except JpegError:
            continue
    return False


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
    encoded = compress(pixels, options.quality, options.subsampling)
    return add_index(encoded) if options.index else encoded


def decode_sample(beton: Beton, sample_id: int) -> np.ndarray:
    """Pixels of a stored image, (H, W, 3) uint8. Raises UserError that names the sample."""
    stored = beton.image_bytes(sample_id)
    height, width = int(beton.heights[sample_id]), int(beton.widths[sample_id])
    if beton.modes[sample_id] == RAW_MODE:
        return np.array(stored).reshape(height, width, 3)
    try:
        header = jpeg.parse(stored)
        if (header.height, header.width) != (height, width):
            raise JpegError(f"it is {header.height} x {header.width} pixels, its row says {height} x {width}")
        return jpeg.decode_rgb(stored)
    except JpegError as error:
        raise UserError(
            f"{beton.path}: sample {sample_id}: {error}; run `beton verify` on the file"
        ) from error
