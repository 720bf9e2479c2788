"""Partial JPEG decoding: crop index, lossless transcoding, and decoding a rectangle."""

from beton_tools.base.compilation import watch_compilation
from beton_tools.jpeg.crop import decode_reduced, decode_region, decode_rgb, find_region, scratch_bytes
from beton_tools.jpeg.markers import DamagedJpeg, Header, JpegError, describe_error, parse
from beton_tools.jpeg.transcode import add_index
from beton_tools.jpeg.turbo import close_decoders, open_decoders

watch_compilation()

__all__ = [
    "DamagedJpeg", "Header", "JpegError", "add_index", "close_decoders", "decode_reduced", "decode_region",
    "decode_rgb", "describe_error", "find_region", "open_decoders", "parse", "scratch_bytes",
]  # fmt: skip
