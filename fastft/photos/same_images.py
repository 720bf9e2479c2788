"""Find images with identical bytes, among photographs and in .beton files."""

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np

from beton_tools.base.cgroup import usable_cpus
from beton_tools.base.content import content_id
from beton_tools.base.names import Names
from beton_tools.read.beton_set import BetonSet
from beton_tools.sources import Source
from beton_tools.sources.base import FileSpan, SpanSource

CHUNK = 64  # images per task
END = 256  # an image's last bytes, which differ for nearly all images that have the same size


def content_ids(sources: Sequence[Source]) -> list[np.ndarray]:
    """Return a number per image for each source. Numbers are equal for images with identical bytes, across all sources.

    An image is read only if another one has the same size, and read whole only if both end alike. Images that cannot be
    read get different numbers, and converting them gives the reason.
    """
    known = [source.contents for source in sources if source.contents is not None]
    if len(known) == len(sources):
        found = np.unique(np.concatenate(known), return_inverse=True)[1].astype(np.int64)
        return np.split(found, np.cumsum([len(ids) for ids in known])[:-1])
    every = [(source, i) for source in sources for i in range(len(source.names))]
    sizes = np.concatenate([_sizes(source) for source in sources])
    ends = np.zeros_like(sizes)
    for k in np.flatnonzero(_repeated(sizes) & (sizes > END)).tolist():
        source, i = every[k]
        ends[k] = _end_crc32(source, i, int(sizes[k]))
    numbers: dict[int, int] = {}
    found = np.arange(len(every), dtype=np.int64)
    for k in np.flatnonzero(_repeated(np.column_stack([sizes, ends])) | (sizes < 0)).tolist():
        source, i = every[k]
        with suppress(OSError):
            found[k] = numbers.setdefault(content_id(source.locate(i).read()), k)
    return np.split(found, np.cumsum([len(source.names) for source in sources])[:-1])


def contents(source: Source) -> list[str]:
    """Return each image's content id as a text, or "" if the image cannot be read. Every image is read whole."""
    if source.contents is not None:
        return [f"{content:016x}" for content in source.contents.tolist()]

    def text(i: int) -> str:
        try:
            return f"{content_id(source.locate(i).read()):016x}"
        except OSError:
            return ""

    with ThreadPoolExecutor(usable_cpus()) as threads:
        return list(threads.map(text, range(len(source.names)), chunksize=CHUNK))


def old_contents(source: Source) -> list[str]:
    """Return what split.csv had before content ids: size and CRC-32 of the last bytes, or "" for unreadable images.

    Different images may have equal texts, such as bitmaps with borders.
    """
    texts = []
    for i, size in enumerate(_sizes(source).tolist()):
        if size > END:
            crc = _end_crc32(source, i, size)
            texts.append(f"{size}-{crc:08x}" if crc >= 0 else "")
            continue
        try:
            data = source.locate(i).read()
        except OSError:
            texts.append("")
        else:
            texts.append(f"{len(data)}-{zlib.crc32(data[-END:]):08x}")
    return texts


def _repeated(values: np.ndarray) -> np.ndarray:
    """Mark the rows that occur more than once, bool (N,)."""
    _, inverse, counts = np.unique(values, axis=0, return_inverse=True, return_counts=True)
    repeated: np.ndarray = counts[inverse.reshape(-1)] > 1
    return repeated


def _end_crc32(source: Source, i: int, size: int) -> int:
    """Return the CRC-32 of an image's last bytes, or -1 if they cannot be read."""
    place = source.locate(i)
    assert isinstance(place, FileSpan)  # others have no size
    try:
        return zlib.crc32(replace(place, offset=place.offset + size - END, length=END).read())
    except OSError:
        return -1


def _sizes(source: Source) -> np.ndarray:
    """Return how many bytes each image has, or -1 if only reading tells."""
    count = len(source.names)
    if not count or not isinstance(source.locate(0), FileSpan):
        return np.full(count, -1, np.int64)
    stamps = source.stamps(np.arange(count, dtype=np.int64))
    of_files = stamps.shape[1] == len(("size", "modification time"))
    return stamps[:, 0] if of_files else stamps[:, -1]  # for a span in an archive, its length


# .beton files -----------------------------------------------------------------------------------------------------------


def as_source(betons: BetonSet) -> SpanSource:
    """Return the samples as labelled images, in their order. Without a manifest, samples are named by their numbers."""
    files = betons.files_of(np.arange(len(betons)))
    names = betons.read_names()
    if names is None:
        names = [f"{betons.files[files[i]].path.name}[{betons.locate(i)[1]}]" for i in range(len(betons))]
    return SpanSource(
        "beton",
        betons.files[0].path,
        tuple(betons.class_names),
        None,
        betons.labels,
        Names.of(names),
        archives=[str(beton.path) for beton in betons.files],
        archive_stamps=[(beton.file_size, beton.modified_ns) for beton in betons.files],
        archive_ids=files,
        offsets=betons.pointers,
        lengths=betons.sizes,
        groups=None if (groups := betons.read_groups()) is None else Names.of(groups),
        contents=betons.read_contents(),
    )
