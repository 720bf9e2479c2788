"""Which file names are names of images."""

from __future__ import annotations

# The suffixes of torchvision's and timm's folder loaders, plus .jfif (JPEG) and .gif (first frame of an animation).
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"),
    *(".jfif", ".gif"),
)


def is_image_name(name: str) -> bool:
    """Whether a file name without folders has an image suffix and is not hidden.

    macOS archives contain a hidden file `._x.JPEG` beside each `x.JPEG`, which holds metadata.
    """
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
