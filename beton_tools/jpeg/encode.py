"""Encode pixels as crop-indexed JPEG; decode any image file to pixels."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from beton_tools.jpeg.markers import JpegError
from beton_tools.jpeg.transcode import add_index
from beton_tools.jpeg.turbo import MAX_SIDE, SUBSAMPLINGS, compress


def encode_indexed(image: np.ndarray, quality: int = 90, subsampling: str = "4:2:0") -> bytes:
    """Encode (H, W, 3) RGB or (H, W) grey u8 as a baseline JPEG with a crop index.

    Args:
        quality: 1-100 on libjpeg's scale.
        subsampling: one of turbo.SUBSAMPLINGS ("gray" discards the colours).

    Raises:
        JpegError: other values, or an image of a type or size that JPEG does not support.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        raise JpegError(f"cannot encode {image.dtype} {image.shape}; give (H, W, 3) or (H, W) uint8")
    if not 1 <= min(image.shape[:2]) <= max(image.shape[:2]) <= MAX_SIDE:
        raise JpegError(f"cannot encode {image.shape[:2]} pixels; each side must have 1 to {MAX_SIDE}")
    if subsampling not in SUBSAMPLINGS:
        raise JpegError(f"unknown subsampling {subsampling!r}; use one of {', '.join(SUBSAMPLINGS)}")
    if not 1 <= quality <= 100:
        raise JpegError(f"JPEG quality {quality} is not between 1 and 100")
    return add_index(compress(image, quality, subsampling))


def decode_image(data: bytes) -> np.ndarray:
    """Decode any image file that Pillow reads to (H, W, 3) u8 RGB, as torchvision's and timm's folder loaders do.

    Pixels are those of Image.convert("RGB") on the first frame: transparency is discarded, and Exif orientation
    and colour profiles are ignored.

    Raises:
        JpegError: Pillow cannot read the file; the message is its reason.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:  # Pillow's message contains a memory address
        raise JpegError("not an image of a known format") from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise JpegError(f"not a readable image: {error}") from error
