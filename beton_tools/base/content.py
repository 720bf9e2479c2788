"""The content id of an image: two images are the same if the bytes of their files are."""

from __future__ import annotations

import hashlib

ID_BYTES = 8  # 64 bits: among 14 million different images, the chance that any two have the same id is 5e-6


def content_id(data: bytes) -> int:
    """Return the first 64 bits of the SHA-256 of an image file's bytes. SHA-256, because processors compute it in hardware."""
    return int.from_bytes(hashlib.sha256(data).digest()[:ID_BYTES], "little")
