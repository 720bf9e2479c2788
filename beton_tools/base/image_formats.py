"""The image formats that can be read: suffixes, Pillow's formats, opening a file, and its pixels as people see them."""

from __future__ import annotations

import importlib
import importlib.util
import io
import re
import sys
import warnings

import numpy as np
from PIL import Image, ImageColor, UnidentifiedImageError

from beton_tools.base.errors import UserError
from beton_tools.base.user_files import StrPath, read_regular

# Pillow may try no others: its EPS reader would start Ghostscript on any file that looks like EPS, whatever its name.
READS_AVIF = importlib.util.find_spec("PIL._avif") is not None  # in Pillow's wheels from 11.3 on
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF", *["AVIF"] * READS_AVIF)
# The suffixes in torchvision's and timm's folder loaders, plus .jfif (JPEG), .gif (an animation's first frame), AVIF and
# phones' HEIC.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"),
    *(".jfif", ".gif", *[".avif"] * READS_AVIF),
    *(HEIC_SUFFIXES := (".heic", ".heif")),
)
HEIC_NEEDS = "HEIC files need pillow-heif. Run: pip install pillow-heif"
# ISO/IEC 23008-12 brands, HEVC-coded. AVIF has mif1 and msf1 too, and its own brand then follows
_HEIC = re.compile(rb".{4}ftyp(hei[cxms]|hev[cxms]|(mif1|msf1)(?!.{4}(.{4}){0,8}avi[fs]))", re.DOTALL)
DEEP_MODES = {"I;16": "16-bit ", "I": "32-bit ", "F": "32-bit "}  # Pillow's modes -> prefix in EncodedImage.how
_DEEP_COLOURS = re.compile(r"(LA|RGB|RGBA|RGBX);16([BLN])")  # Pillow's raw modes
_STRETCHED = "fastft_stretched"  # in `info` of an image that `open_image` stretched
DEEP_IMAGES = (
    "16 or 32 bits per value, reduced to 8 (in each file, the smallest value becomes black and the largest white)"
)
TRANSPARENT = "transparent pixels, which get the background colour"
WHITE = "white"
_ORIENTATION = 0x0112  # the Exif tag, which Pillow reads from XMP too
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_FILE_BYTES = 1 << 30  # largest image file. A 1 GiB TIFF has 360 megapixels

# Each scan in a progressive JPEG takes time for the whole image, even if it has only a few bytes. The usual
# scripts have 10 scans, and libjpeg-turbo's own fuzzers stop at 500.
MAX_SCANS = 500
# Marker and length of a scan with 1 to 4 components. They occur by chance once in a billion random bytes, as in the
# video that a motion photo contains.
_SCAN = re.compile(rb"\xff\xda\x00[\x08\x0a\x0c\x0e]")


def is_image_name(name: str) -> bool:
    """Return True if a file name (without folders) has an image suffix and is not hidden.

    macOS archives contain a hidden file `._x.JPEG` beside each `x.JPEG`, which holds metadata.
    """
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def reads_heic() -> bool:
    """Return True if pillow-heif is installed."""
    try:
        importlib.import_module("pillow_heif")
    except ImportError:
        return False
    return True


def depth_prefix(image: Image.Image) -> str:
    """Return a prefix for images with more than 8 bits per value.

    It is "16-bit " or "32-bit " if the file that `open_image` opened has that depth, and "" for 8 bits.
    """
    return "16-bit " if _STRETCHED in image.info else DEEP_MODES.get(image.mode[:4], "")


def open_image(source: bytes | StrPath) -> Image.Image:
    """Open an image file, given its path or its bytes, like `PIL.Image.open`, but only in one of the `FORMATS`.

    Pillow keeps only the upper 8 bits of colours with 16 bits per value. Here they are stretched to 8 bits as
    DEEP_IMAGES describes.

    Raises:
        OSError: The path is not a regular file, the file is too large, a JPEG has too many scans, or the file is not an
            image in one of the formats (`PIL.UnidentifiedImageError`). For damaged files Pillow raises other exceptions
            too, here or when it decodes.
    """
    data = source if isinstance(source, bytes) else read_regular(source, MAX_FILE_BYTES)
    if data.startswith(b"\xff\xd8") and len(_SCAN.findall(data)) > MAX_SCANS:
        raise OSError(f"a JPEG with more than {MAX_SCANS} scans")
    formats = ("HEIF",) if _HEIC.match(data) else FORMATS
    if formats != FORMATS:
        if not reads_heic():
            raise OSError(HEIC_NEEDS)
        importlib.import_module("pillow_heif").register_heif_opener()
    try:
        with warnings.catch_warnings():
            # warnings about metadata, and about images with 90 to 179 million pixels. Pillow opens no larger image
            warnings.simplefilter("ignore")
            return _stretch_colours(Image.open(io.BytesIO(data), formats=formats), data)
    except UnidentifiedImageError:  # its message contains a memory address, which differs in every run
        raise UnidentifiedImageError("not an image in a known format") from None


def _stretch_colours(image: Image.Image, data: bytes) -> Image.Image:
    """Convert an image with 16 bits per colour to 8 bits, stretched over all its visible pixels and channels.

    Any other image is returned unchanged.
    """
    found = _DEEP_COLOURS.fullmatch(_raw_mode(image))
    if found is None:
        return image
    kind, order = found.groups()
    if kind == "LA":  # Pillow cannot unpack the lower bytes, but these four bytes are laid out like an RGBA pixel
        bytes_HW4 = _unpack(image, data, "RGBA").astype(np.uint16)
        values = np.repeat(bytes_HW4[..., :1] << 8 | bytes_HW4[..., 1:2], 3, axis=2)
        alpha = bytes_HW4[..., 2:3]
    else:
        swapped = "L" if order == "B" or (order == "N" and sys.byteorder == "big") else "B"
        upper, lower = (_unpack(image, data, f"{kind};16{o}").astype(np.uint16) for o in (order, swapped))
        values, alpha = (upper << 8 | lower)[..., :3], upper[..., 3:]
    visible = values[alpha[..., 0] > 0] if alpha.size else values
    pixels = np.concatenate([_stretch(values, visible), alpha.astype(np.uint8)], axis=2)
    stretched = Image.fromarray(pixels)
    stretched.format = image.format
    stretched.info.update(
        {key: value for key, value in image.info.items() if key in ("exif", "xmp")}, **{_STRETCHED: True}
    )
    return stretched


def _raw_mode(image: Image.Image) -> str:
    """Return how Pillow will unpack a file's bytes, such as "RGB;16B", or "" if it does not say."""
    tiles = getattr(image, "tile", ())
    arguments = tiles[0].args if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _unpack(image: Image.Image, data: bytes, raw_mode: str) -> np.ndarray:
    """Unpack the file of `image` with another raw mode. Returns (H, W, C) uint8."""
    again = Image.open(io.BytesIO(data), formats=(str(image.format),))
    tiles = again.tile
    arguments = ((raw_mode, *t.args[1:]) if isinstance(t.args, tuple) else raw_mode for t in tiles)
    again.tile = [tile._replace(args=args) for tile, args in zip(tiles, arguments, strict=True)]
    return np.asarray(again)


def _stretch(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Stretch values from the range of the finite values in `among` to 0..255, as uint8. NaN becomes 0."""
    if values.dtype.kind == "u":  # 16-bit values: by a table
        return _stretch(np.arange(1 << 16, dtype=np.float64), among)[values]
    finite = among[np.isfinite(among)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    stretched = np.nan_to_num((values - low) * (255 / (high - low) if high > low else 0.0))
    return stretched.clip(0, 255).round().astype(np.uint8)


def orientation_of(image: Image.Image) -> int:
    """Return how the camera says that the image must be turned, 1 to 8 (Exif 2.3, 4.6.4 A).

    Without a valid note the result is 1, which means as stored.
    """
    try:
        # Pillow turns TIFFs as it loads them
        orientation = 1 if image.format == "TIFF" else image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged Exif data, for which Pillow's readers raise many types
        return 1
    return orientation if orientation in _TURNS else 1


def upright_rgb(image: Image.Image, orientation: int, background: str = WHITE) -> tuple[Image.Image, bool]:
    """Convert an image to RGB as people see it.

    It is turned as `orientation` says, and laid on `background` where it is transparent.

    Grey values with 16 or 32 bits are stretched from the file's range to 0..255. NaN becomes black.

    Returns:
        The image, and whether any pixel was transparent.
    """
    turned = image.transpose(_TURNS[orientation]) if orientation != 1 else image
    if turned.mode[:4] in DEEP_MODES:
        values = np.asarray(turned)
        return Image.fromarray(_stretch(values, values)).convert("RGB"), False
    if not turned.has_transparency_data:
        return turned.convert("RGB"), False
    rgba = turned.convert("RGBA")
    if rgba.getchannel("A").getextrema()[0] == 255:
        return rgba.convert("RGB"), False
    canvas = Image.new("RGBA", rgba.size, background)
    canvas.alpha_composite(rgba)
    return canvas.convert("RGB"), True


def check_colour(option: str, text: str) -> None:
    """Raise UserError unless Pillow's `ImageColor` reads `text` as a colour: "white", "#808080", "rgb(0, 0, 128)"."""
    try:
        ImageColor.getrgb(text)
    except ValueError:
        raise UserError(f"{option} cannot be {text!r}. Give a colour such as white or '#808080'") from None
