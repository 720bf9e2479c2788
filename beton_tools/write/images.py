"""Encode a source image as the JPEG that a `.beton` stores: kept losslessly where possible, else re-encoded once."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from beton_tools import jpeg
from beton_tools.base.content import content_id
from beton_tools.base.errors import UserError
from beton_tools.base.image_formats import (
    DEEP_IMAGES,
    DEEP_MODES,
    TRANSPARENT,
    WHITE,
    depth_prefix,
    open_image,
    orientation_of,
    upright_rgb,
)
from beton_tools.jpeg.markers import DamagedJpeg, JpegError
from beton_tools.jpeg.turbo import MAX_SIDE, compress, turn_upright
from beton_tools.read.format import DEFAULT_PAGE_SIZE, MAX_PIXELS_PER_BYTE, RAW_MODE
from beton_tools.read.manifest import ANIMATED, CLEAR
from beton_tools.read.sample_table import SampleTable
from beton_tools.write.area import shrink_by_area

SUBSAMPLINGS = ("4:2:0", "4:2:2", "4:4:4")
AUTO_MODE = "auto"
WRITE_MODES = (AUTO_MODE, "jpg", "raw")  # the last two are FFCV's names
QUALITY, SUBSAMPLING = 90, SUBSAMPLINGS[0]  # FFCV's defaults, which the paper's files use too
# On four scikit-image photographs, the mean error is 0.2 to 1.1 of 255 levels, against 2.0 to 2.9 with the values above.
# The JPEGs are half as large as the PNGs.
LOSSLESS_QUALITY, LOSSLESS_SUBSAMPLING = 98, "4:4:4"
_LOSSLESS = ("PNG", "BMP", "PPM", "TIFF", "GIF")  # and VP8L WebP files
_FRAME_HEADER = 16  # bytes before an animated WebP's frame
RAW_PIXELS = 128 * 128  # for a lossless file that is stored as pixels, 49 kB: exact, and decoded at once
KEPT, DAMAGED = "kept", "damaged JPEG"
RAW = "raw, "  # begins `EncodedImage.how` for images that are stored as pixels


class BadImage(Exception):
    """An image that cannot be stored. The message is the reason, without the image's name."""


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How images are stored.

    Attributes:
        max_resolution: Longest side in pixels. Larger images are shrunk (antialiased). None keeps every size.
        quality: JPEG quality for re-encoded images. None means 90, and 98 for lossless files, such as PNG.
        subsampling: Chroma subsampling for re-encoded images. None means 4:2:0, and 4:4:4 for lossless files.
        lossless: Keep the coefficients of JPEGs that need no other change.
        page_size: Bytes per page in the file, a power of two. Larger JPEGs are re-encoded.
        write_mode: "jpg" stores JPEGs, and "raw" stores pixels, which need no decoding. "auto" stores pixels for small
            lossless files with at most RAW_PIXELS, and JPEGs for all others.
        background: Colour under transparent pixels, as Pillow's `ImageColor` reads it.
        upright: Turn images upright by their Exif orientation. False stores them as timm's and torchvision's loaders
            read them.
    """

    max_resolution: int | None = None
    quality: int | None = None
    subsampling: str | None = None
    lossless: bool = True
    index: bool = field(default=True, init=False)  # not an option any more, but part of the files' fingerprints
    page_size: int = DEFAULT_PAGE_SIZE
    write_mode: str = AUTO_MODE
    background: str = WHITE
    upright: bool = True


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An encoded image.

    Attributes:
        how: KEPT, or why the image was re-encoded: "resized", "PNG", "CMYK JPEG", DAMAGED, ... For stored pixels, RAW and
            then the file's kind.
        content: The source file's content id (`content_id`).
    """

    data: bytes
    height: int
    width: int
    how: str
    content: int = 0


def encode_sample(data: bytes, options: EncodeOptions) -> EncodedImage:
    """Encode an image file's contents.

    Raises:
        BadImage: Pillow cannot decode the file, or its JPEG does not fit a page.
    """
    if not data:
        raise BadImage("empty file")
    try:
        kept = _keep(data, options) if options.lossless and options.write_mode != "raw" else None
    except DamagedJpeg:
        encoded = replace(_reencode(data, options), how=DAMAGED)
    else:
        encoded = kept or _reencode(data, options)
    return replace(encoded, content=content_id(data))


def warm_up() -> None:
    """Compile the functions that encoding calls into Numba's cache, so that workers load them from there."""
    grey = np.zeros((16, 16, 3), np.uint8)
    encode_sample(jpeg.add_index(compress(grey, QUALITY, SUBSAMPLING)), EncodeOptions())
    shrink(grey, 12)


def _reencode(data: bytes, options: EncodeOptions) -> EncodedImage:
    pixels, form, is_lossless = _decode(data, options)
    stored = shrink(pixels, options.max_resolution)
    is_noted = count_notes({form: 1}) or ANIMATED in form
    how = form if stored is pixels or form == DAMAGED or is_noted else "resized"
    if max(stored.shape) > MAX_SIDE:
        raise BadImage(
            f"{stored.shape[1]} x {stored.shape[0]} pixels, but the limit is {MAX_SIDE} per side. Give --max-resolution"
        )
    is_small = options.write_mode == AUTO_MODE and is_lossless and stored.size <= 3 * RAW_PIXELS
    raw = options.write_mode == "raw" or is_small
    encoded = stored.tobytes() if raw else _encode_jpeg(stored, options, is_lossless)
    if len(encoded) > options.page_size:
        raise BadImage(f"{len(encoded)} bytes do not fit a page of {options.page_size}. Give --max-resolution")
    return EncodedImage(encoded, stored.shape[0], stored.shape[1], RAW + how if raw else how)


def _keep(data: bytes, options: EncodeOptions) -> EncodedImage | None:
    """Keep a JPEG's coefficients. Returns None for a file that must be decoded and re-encoded.

    This applies to a file that is not a JPEG, is too large, CMYK or progressive, must be turned although blocks at its
    edges are incomplete, or can be read by Pillow but causes a warning in libjpeg-turbo, which the loader uses.

    Raises:
        DamagedJpeg: The entropy-coded data are damaged.
    """
    try:
        head = jpeg.parse(data)
        longest = max(head.height, head.width)
        if longest > min(options.max_resolution or MAX_SIDE, MAX_SIDE):
            return None
        orientation = _noted_orientation(data[: head.scan_at]) if options.upright else 1
        if orientation != 1:
            if head.height * head.width > MAX_PIXELS_PER_BYTE * len(data):  # all coefficients are held in memory
                return None
            data = turn_upright(data, orientation)
            head = jpeg.parse(data)
        stored = jpeg.add_index(data)
    except DamagedJpeg:
        raise
    except (JpegError, Image.DecompressionBombError):
        return None
    if len(stored) > options.page_size:
        return None
    try:  # one pixel needs the first segment only, and shows whether libjpeg-turbo accepts header and tables
        jpeg.decode_rgb(stored, (0, 0, 1, 1))
    except JpegError:
        return None
    return EncodedImage(stored, head.height, head.width, KEPT)


def _noted_orientation(header: bytes) -> int:
    """Return the Exif orientation in a JPEG's header. Pillow is called only if the header may contain one."""
    if b"Exif\0\0" not in header and b"tiff:Orientation" not in header:
        return 1
    with suppress(OSError):
        return orientation_of(open_image(header))
    return 1


def count_notes(encodings: Mapping[str, int]) -> dict[str, int]:
    """Return warnings with counts.

    Args:
        encodings: `EncodedImage.how` -> number of images.

    Returns:
        Warning, as text -> number of images.
    """
    deep = tuple(DEEP_MODES.values())
    counts = {
        DEEP_IMAGES: sum(n for how, n in encodings.items() if how.removeprefix(RAW).startswith(deep)),
        TRANSPARENT: sum(n for how, n in encodings.items() if CLEAR in how),
    }
    return {text: count for text, count in counts.items() if count}


def _is_lossless_webp(data: bytes) -> bool:
    """Return True if a WebP file's first image is lossless. Chunks with metadata or a frame's place may precede it."""
    at = 12 if data[8:12] == b"WEBP" else len(data)
    while (kind := data[at : at + 4]) not in (b"VP8L", b"VP8 ", b""):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + (_FRAME_HEADER if kind == b"ANMF" else size + size % 2)
    return kind == b"VP8L"


def _decode(data: bytes, options: EncodeOptions) -> tuple[np.ndarray, str, bool]:
    """Decode a file. Missing parts of a damaged JPEG are filled in, as timm's and torchvision's loaders do.

    Returns:
        RGB pixels (H, W, 3) uint8, the format or unusual mode, and whether the file was stored losslessly.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about Exif data and palettes, which change no pixel
            image = open_image(data)
            is_jpeg = image.format in ("JPEG", "MPO")
            quiet = None
            if is_jpeg:  # libjpeg-turbo gives Pillow's pixels, faster, unless it warns or fails
                with suppress(JpegError):
                    quiet = Image.fromarray(jpeg.decode_reduced(data, _reduction(image, options.max_resolution)))
            orientation = orientation_of(image) if options.upright else 1
            rgb, is_transparent = upright_rgb(quiet or image, orientation, options.background)
            pixels = np.asarray(rgb)
    except Exception as error:  # Pillow's plug-ins raise many exception types for damaged data
        reason = str(error) or type(error).__name__
        raise BadImage(f"cannot be decoded ({reason})".replace("\n", " ")) from error
    if not is_jpeg:
        frames = ANIMATED if getattr(image, "is_animated", False) else ""
        form = f"{depth_prefix(image)}{CLEAR if is_transparent else ''}{frames}{image.format}"
        return pixels, form, image.format in _LOSSLESS or _is_lossless_webp(data)
    if quiet is None and _is_damaged(data):
        return pixels, DAMAGED, False
    return pixels, "progressive JPEG" if image.info.get("progressive") else f"{image.mode} JPEG", False


def _reduction(image: Image.Image, max_resolution: int | None) -> int:
    """Return the factor by which libjpeg reduces the image while decoding.

    The result has at least twice the stored size.

    Converting a 12 megapixel photograph takes 230 ms, and decoding all its pixels takes 190 of them. At twice the stored
    size, reducing first changes `shrink`'s pixels less than storing them as a JPEG does (0.9 and 1.7 levels on average
    at 500 pixels).
    """
    longest = max(image.size)
    return next((factor for factor in (8, 4, 2) if max_resolution and longest >= 2 * factor * max_resolution), 1)


def _is_damaged(data: bytes) -> bool:
    """Return True if a JPEG's scans are damaged, which Pillow does not report. False for unsupported JPEGs."""
    for read_whole in (jpeg.add_index, jpeg.decode_rgb):  # the first detects more, the second supports more kinds
        try:
            read_whole(data)
        except DamagedJpeg:
            return True
        except JpegError:
            continue
        break
    return False


def shrink(pixels: np.ndarray, max_resolution: int | None) -> np.ndarray:
    """Resize (H, W, 3) uint8 so that the longest side is at most max_resolution.

    The interpolation (area) and the sizes are the same as in FFCV's writer.
    """
    height, width = pixels.shape[:2]
    longest = max(height, width)
    if max_resolution is None or longest <= max_resolution:
        return pixels
    return shrink_by_area(
        np.ascontiguousarray(pixels),
        max(1, height * max_resolution // longest),
        max(1, width * max_resolution // longest),
    )


def _encode_jpeg(pixels: np.ndarray, options: EncodeOptions, is_lossless: bool) -> bytes:
    quality, subsampling = (LOSSLESS_QUALITY, LOSSLESS_SUBSAMPLING) if is_lossless else (QUALITY, SUBSAMPLING)
    return jpeg.add_index(compress(pixels, options.quality or quality, options.subsampling or subsampling))


def decode_sample(table: SampleTable, sample_id: int) -> np.ndarray:
    """Return a stored image's pixels, (H, W, 3) uint8.

    Raises:
        UserError: The sample cannot be read or decoded. The message names it.
    """
    stored = table.image_bytes(sample_id)
    height, width = int(table.heights[sample_id]), int(table.widths[sample_id])
    if table.modes[sample_id] == RAW_MODE:
        return np.array(stored).reshape(height, width, 3)
    try:
        head = jpeg.parse(stored)
        if (head.height, head.width) != (height, width):
            raise JpegError(
                f"the JPEG has {head.height} x {head.width} pixels, but the metadata table states {height} x {width}"
            )
        return jpeg.decode_rgb(stored)
    except JpegError as error:
        raise UserError(f"{table.title}: sample {sample_id}: {error}. Run `beton verify` on the file") from error
