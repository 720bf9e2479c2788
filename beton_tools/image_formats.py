"""The image formats that are read: file name suffixes, Pillow's formats, and opening an image file."""

from __future__ import annotations

import io

from PIL import Image

from beton_tools.user_files import StrPath, read_regular

# Pillow may try no others: its EPS reader would start Ghostscript on any file that looks like EPS, whatever its name.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
# The suffixes of torchvision's and timm's folder loaders, plus .jfif (JPEG) and .gif (first frame of an animation).
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"),
    *(".jfif", ".gif"),
)
MAX_FILE_BYTES = 1 << 30  # of an image file; 1 GiB of TIFF are 360 megapixels


def is_image_name(name: str) -> bool:
    """Whether a file name (without folders) has an image suffix and is not hidden.

    macOS archives contain a hidden file `._x.JPEG` beside each `x.JPEG`, which holds metadata.
    """
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def open_image(source: bytes | StrPath) -> Image.Image:
    """As `PIL.Image.open`, for the bytes of an image file or its path, and for `FORMATS` only.

    Raises:
        OSError: the path is not a regular file, the file is too large, or not an image of one of the formats
            (`PIL.UnidentifiedImageError`). Pillow raises other exceptions too for damaged files, here or when it decodes.
    """
    data = source if isinstance(source, bytes) else read_regular(source, MAX_FILE_BYTES)
    return Image.open(io.BytesIO(data), formats=FORMATS)
