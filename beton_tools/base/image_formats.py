"""The image formats that are read: file name suffixes, Pillow's formats, opening a file, and its pixels as people see them."""

from __future__ import annotations

import importlib
import io
import re
import warnings

import numpy as np
from PIL import Image, ImageColor, UnidentifiedImageError

from beton_tools.base.errors import UserError
from beton_tools.base.user_files import StrPath, read_regular

# Pillow may try no others: its EPS reader would start Ghostscript on any file that looks like EPS, whatever its name.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
# The suffixes of torchvision's and timm's folder loaders, plus .jfif (JPEG), .gif (first frame of an animation) and phones' HEIC.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"),
    *(".jfif", ".gif", ".heic", ".heif"),
)
_HEIC = re.compile(rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)  # brands of ISO/IEC 23008-12, HEVC-coded
DEEP_MODES = {"I;16": "16-bit ", "I": "32-bit ", "F": "32-bit "}  # Pillow's modes -> in EncodedImage.how
DEEP_IMAGES = "16 or 32 bits per value, stretched to 8: each file's smallest value to black, its largest to white"
TRANSPARENT = "transparent pixels, which are laid on the background colour"
WHITE = "white"
_ORIENTATION = 0x0112  # the tag of Exif, which Pillow reads from XMP too
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
CHANNELS = 3  # of every image that is stored, decoded and augmented: RGB
MAX_FILE_BYTES = 1 << 30  # of an image file; 1 GiB of TIFF are 360 megapixels

# Each scan of a progressive JPEG takes time for the whole image, even if it has only a few bytes. The usual scripts have 10
# scans; libjpeg-turbo's own fuzzers stop at 500.
MAX_SCANS = 500
# marker and length of a scan of 1 to 4 components: once in a billion random bytes, as in the video of a motion photo
_SCAN = re.compile(rb"\xff\xda\x00[\x08\x0a\x0c\x0e]")


def is_image_name(name: str) -> bool:
    """True if a file name (without folders) has an image suffix and is not hidden.

    macOS archives contain a hidden file `._x.JPEG` beside each `x.JPEG`, which holds metadata.
    """
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def depth_prefix(image: Image.Image) -> str:
    """The prefix "16-bit " or "32-bit " for an image of so many bits per value; "" for 8."""
    return DEEP_MODES.get(image.mode[:4], "")


def open_image(source: bytes | StrPath) -> Image.Image:
    """The same as `PIL.Image.open`, for the bytes of an image file or its path, and for `FORMATS` only.

    Raises OSError: the path is not a regular file, the file is too large, a JPEG has too many scans, or not an image of one of
    the formats (`PIL.UnidentifiedImageError`). Pillow raises other exceptions too for damaged files, here or when it decodes.
    """
    data = source if isinstance(source, bytes) else read_regular(source, MAX_FILE_BYTES)
    if data.startswith(b"\xff\xd8") and len(_SCAN.findall(data)) > MAX_SCANS:
        raise OSError(f"a JPEG of more than {MAX_SCANS} scans")
    formats = ("HEIF",) if _HEIC.match(data) else FORMATS
    if formats != FORMATS:
        try:
            importlib.import_module("pillow_heif").register_heif_opener()
        except ImportError:
            raise OSError("HEIC files need pillow-heif: pip install 'fastft[heic]'") from None
    try:
        with warnings.catch_warnings():
            # of metadata, and of 90 to 179 million pixels; Pillow opens no larger image
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:  # its message contains a memory address, different in every run
        raise UnidentifiedImageError("not an image of a known format") from None


def orientation_of(image: Image.Image) -> int:
    """How a camera says that the image is to be turned, 1 to 8 (Exif 2.3, 4.6.4 A); 1, as stored, without a valid note."""
    try:
        # Pillow turns TIFFs as it loads them
        orientation = 1 if image.format == "TIFF" else image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged Exif data, of which Pillow's readers raise many types
        return 1
    return orientation if orientation in _TURNS else 1


def upright_rgb(image: Image.Image, orientation: int, background: str = WHITE) -> tuple[Image.Image, bool]:
    """An image as people see it, in RGB: turned as `orientation` says, and laid on `background` where it is transparent.

    Values of 16 or 32 bits are stretched from the range of the file to 0..255; NaN becomes black.

    Returns:
        The image, and whether a pixel of it was transparent.
    """
    turned = image.transpose(_TURNS[orientation]) if orientation != 1 else image
    if depth_prefix(turned):
        values = np.asarray(turned, np.float64)
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        stretched = np.nan_to_num((values - low) * (255 / (high - low) if high > low else 0.0))
        return Image.fromarray(stretched.clip(0, 255).round().astype(np.uint8)).convert("RGB"), False
    if not turned.has_transparency_data:
        return turned.convert("RGB"), False
    rgba = turned.convert("RGBA")
    if rgba.getchannel("A").getextrema()[0] == 255:
        return rgba.convert("RGB"), False
    canvas = Image.new("RGBA", rgba.size, background)
    canvas.alpha_composite(rgba)
    return canvas.convert("RGB"), True


def check_colour(option: str, text: str) -> None:
    """Raise UserError if `text` is no colour as Pillow's `ImageColor` reads it: "white", "#808080", "rgb(0, 0, 128)"."""
    try:
        ImageColor.getrgb(text)
    except ValueError:
        raise UserError(f"{option} cannot be {text!r}; give a colour such as white or '#808080'") from None
