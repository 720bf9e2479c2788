"""The image formats that are read: file name suffixes, Pillow's formats, and opening an image file."""

from __future__ import annotations

import io
import re
import warnings

from PIL import Image, UnidentifiedImageError

from beton_tools.base.user_files import StrPath, read_regular

# Pillow may try no others: its EPS reader would start Ghostscript on any file that looks like EPS, whatever its name.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
# The suffixes of torchvision's and timm's folder loaders, plus .jfif (JPEG) and .gif (first frame of an animation).
IMAGE_SUFFIXES = (*(".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"), *(".jfif", ".gif"))
DEEP_MODES = {"I;16": "16-bit ", "I": "32-bit ", "F": "32-bit "}  # Pillow's modes -> in EncodedImage.how
DEEP_IMAGES = "16 or 32 bits per value: values above 255 become white, fractions of 1 black; scale them to 8 bits"
MAX_FILE_BYTES = 1 << 30  # of an image file; 1 GiB of TIFF are 360 megapixels

# Each scan of a progressive JPEG takes time for the whole image, even if it has only a few bytes. The usual scripts have 10
# scans; libjpeg-turbo's own fuzzers stop at 500.
MAX_SCANS = 500
# without stuffed bytes, restart markers and fill bytes, which data of scans contain
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SOS, _EOI = 0xDA, 0xD9


def is_image_name(name: str) -> bool:
    """True if a file name (without folders) has an image suffix and is not hidden.

    macOS archives contain a hidden file `._x.JPEG` beside each `x.JPEG`, which holds metadata.
    """
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def depth_prefix(image: Image.Image) -> str:
    """The prefix "16-bit " or "32-bit " for an image of so many bits per value, which `convert("RGB")` clips; "" for 8."""
    return DEEP_MODES.get(image.mode[:4], "")


def open_image(source: bytes | StrPath) -> Image.Image:
    """The same as `PIL.Image.open`, for the bytes of an image file or its path, and for `FORMATS` only.

    Raises:
        OSError: the path is not a regular file, the file is too large, a JPEG has too many scans, or not an image of one of
            the formats (`PIL.UnidentifiedImageError`). Pillow raises other exceptions too for damaged files, here or when it
            decodes.
    """
    data = source if isinstance(source, bytes) else read_regular(source, MAX_FILE_BYTES)
    # markers inside other segments count here, too
    may_have_many = data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MAX_SCANS
    if may_have_many and _count_scans(data) > MAX_SCANS:
        raise OSError(f"a JPEG of more than {MAX_SCANS} scans")
    try:
        with warnings.catch_warnings():
            # of metadata, and of 90 to 179 million pixels; Pillow opens no larger image
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:  # its message contains a memory address, different in every run
        raise UnidentifiedImageError("not an image of a known format") from None


def _count_scans(data: bytes) -> int:
    """The SOS markers before the end of a JPEG, without those inside other segments, such as Exif's thumbnail."""
    scans, at = 0, len(b"\xff\xd8")
    while (found := _MARKER.search(data, at)) is not None:
        marker, at = data[found.end() - 1], found.end()
        if marker == _EOI:
            break
        scans += marker == _SOS
        at += int.from_bytes(data[at : at + 2], "big")  # the segment; data of a scan follow its segment
    return scans
