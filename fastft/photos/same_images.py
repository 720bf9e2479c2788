"""Which images are the same: of photographs by their bytes, of .beton files also where they are stored in different sizes."""

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from beton_tools.base.cgroup import usable_cpus
from beton_tools.base.errors import UserError
from beton_tools.base.names import Names
from beton_tools.base.progress_bar import progress
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.manifest import Manifest
from beton_tools.sources import Source
from beton_tools.sources.base import FileSpan, SpanSource
from beton_tools.write.images import EncodedImage, EncodeOptions
from beton_tools.write.workers import Task, encode_in_order
from beton_tools.write.writer import WriteOptions

END = 256  # bytes at the end of an image, which differ for nearly all images that have the same size
FEW = 200  # images that one process encodes sooner than several have started
MOST = 20_000  # larger images that are encoded, which takes a core some minutes


@dataclass(frozen=True, slots=True)
class Content:
    """Size in bytes, CRC-32 of the last END bytes, and hash of an encoded image; two images are equal if all three are."""

    size: int
    end: int
    digest: bytes


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
    for k in np.flatnonzero(_repeated(sizes) & (sizes > END)).tolist():
        source, i = every[k]
        ends[k] = given[k].end if k in given else _end_crc32(source, i, int(sizes[k]))
    numbers: dict[bytes, int] = {}
    found = np.arange(len(every), dtype=np.int64)
    for k in np.flatnonzero(_repeated(np.column_stack([sizes, ends])) | (sizes < 0)).tolist():
        source, i = every[k]
        try:
            digest = given[k].digest if k in given else _digest(source.locate(i).read())
        except OSError:
            continue
        found[k] = numbers.setdefault(digest, k)
    return np.split(found, starts[1:-1])


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _repeated(values: np.ndarray) -> np.ndarray:
    """bool (N,): the rows that occur more than once."""
    _, inverse, counts = np.unique(values, axis=0, return_inverse=True, return_counts=True)
    repeated: np.ndarray = counts[inverse.reshape(-1)] > 1
    return repeated


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


# .beton files -----------------------------------------------------------------------------------------------------------


def as_source(betons: BetonSet) -> SpanSource:
    """The samples as labelled images, in their order; those of a file without a manifest are named by their numbers."""
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
    )


def ids_at_one_size(sets: Sequence[BetonSet]) -> list[np.ndarray]:
    """`content_ids` of each set, as if all images had been converted with the smallest `max_resolution` of the sets.

    Photographs are converted with a limit for a training, and test files mostly without one: larger JPEGs are shrunk and encoded
    here as that conversion did it, which gives the same bytes. Larger images that the conversion had to encode, such as PNGs, and
    larger images of sets that have more than MOST are not recognised.
    """
    limited = [options for betons in sets if (options := _options_of(betons)) is not None]
    options = min(limited, key=lambda each: each.max_resolution or 0, default=None)
    return content_ids(list(map(as_source, sets)), [_shrunk(betons, options) for betons in sets])


def count_shared(images: BetonSet, others: Sequence[BetonSet]) -> int:
    """The number of images of a set that are also in one of the others, compared as in `ids_at_one_size`."""
    ids, *other_ids = ids_at_one_size([images, *others])
    return int(np.isin(ids, np.concatenate(other_ids)).sum())


def _options_of(betons: BetonSet) -> EncodeOptions | None:
    """How the images were converted; None if they kept their sizes, or it is not known."""
    manifest = Manifest.of_beton(betons.files[0].path)
    stored: dict[str, Any] = {} if manifest is None else manifest.options
    if not isinstance(stored.get("max_resolution"), int):
        return None
    try:
        return WriteOptions(**{f.name: stored[f.name] for f in fields(EncodeOptions) if f.name in stored})
    except (UserError, TypeError):  # of a manifest that was changed by hand
        return None


def _shrunk(betons: BetonSet, options: EncodeOptions | None) -> dict[int, Content]:
    """The larger images as `options` encode them. One that cannot be encoded, such as raw pixels, is left out."""
    limit = None if options is None else options.max_resolution
    sides = np.maximum(betons.heights, betons.widths)
    large = [] if limit is None else np.flatnonzero(sides > limit).tolist()
    if options is None or not 0 < len(large) <= MOST:
        return {}
    source = as_source(betons)
    tasks = (Task(source.names[i], source.locate(i)) for i in large)
    found = {}
    with progress(f"comparing {source.root}") as show:
        results = encode_in_order(tasks, options, 0 if len(large) < FEW else usable_cpus())
        for done, (i, result) in enumerate(zip(large, results, strict=True), 1):
            if isinstance(result, EncodedImage):
                data = result.data
                found[i] = Content(len(data), zlib.crc32(data[-END:]), _digest(data))
            show(done, len(large), done - len(found))
    return found
