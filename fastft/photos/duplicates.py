"""Images with identical bytes."""

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from beton_tools.sources import Source
from beton_tools.sources.base import FileSpan

END = 256  # bytes at the end of an image, which differ for nearly all images that have the same size


@dataclass(frozen=True, slots=True)
class Content:
    """Size in bytes, CRC-32 of the last END bytes, and hash of an encoded image; two images are equal if all three are."""

    size: int
    end: int
    digest: bytes

    @classmethod
    def of(cls, data: bytes) -> "Content":
        return cls(len(data), zlib.crc32(data[-END:]), _digest(data))


def content_ids(
    sources: Sequence[Source], contents: Sequence[Mapping[int, Content]] | None = None
) -> list[np.ndarray]:
    """A number per image, for each source: equal for images with identical bytes, over all sources.

    contents: for each source, what to compare images by that are not to be compared by their bytes in the source.

    Images are read only where another has the same size, and whole only where it ends alike. Images that cannot be read have
    numbers of their own; converting them gives the reason.
    """
    every = [(source, i) for source in sources for i in range(len(source.names))]
    starts = np.cumsum([0, *(len(source.names) for source in sources)]).tolist()
    given = {
        start + i: content
        for start, of_source in zip(starts, contents or (), strict=False)
        for i, content in of_source.items()
    }
    sizes = np.concatenate([_sizes(source) for source in sources])
    for k, content in given.items():
        sizes[k] = content.size
    ends = np.zeros_like(sizes)
    for k in np.flatnonzero(_shared(sizes) & (sizes > END)).tolist():
        source, i = every[k]
        ends[k] = given[k].end if k in given else _end_crc32(source, i, int(sizes[k]))
    numbers: dict[bytes, int] = {}
    found = np.arange(len(every), dtype=np.int64)
    for k in np.flatnonzero(_shared(np.column_stack([sizes, ends])) | (sizes < 0)).tolist():
        source, i = every[k]
        try:
            digest = given[k].digest if k in given else _digest(source.locate(i).read())
        except OSError:
            continue
        found[k] = numbers.setdefault(digest, k)
    return np.split(found, starts[1:-1])


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _shared(values: np.ndarray) -> np.ndarray:
    """bool (N,): the rows that occur more than once."""
    _, inverse, counts = np.unique(values, axis=0, return_inverse=True, return_counts=True)
    shared: np.ndarray = counts[inverse.reshape(-1)] > 1
    return shared


def _end_crc32(source: Source, i: int, size: int) -> int:
    """CRC-32 of the last bytes of an image; -1 if they cannot be read."""
    place = source.locate(i)
    assert isinstance(place, FileSpan)  # others have no size
    try:
        return zlib.crc32(replace(place, offset=place.offset + size - END, length=END).read())
    except OSError:
        return -1


def _sizes(source: Source) -> np.ndarray:
    """Bytes of every image; -1 where only reading tells."""
    count = len(source.names)
    if not count or not isinstance(source.locate(0), FileSpan):
        return np.full(count, -1, np.int64)
    stamps = source.stamps(np.arange(count, dtype=np.int64))
    of_files = stamps.shape[1] == len(("size", "modification time"))
    return stamps[:, 0] if of_files else stamps[:, -1]  # of a span in an archive its length
