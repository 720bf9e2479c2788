"""Which images are in several .beton files, also where they are stored in different sizes."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from beton_tools.beton_set import BetonSet
from beton_tools.cgroup import usable_cpus
from beton_tools.errors import UserError
from beton_tools.images import EncodedImage, EncodeOptions
from beton_tools.manifest import Manifest
from beton_tools.sources.base import SpanSource, stamps_of
from beton_tools.workers import Task, encode_in_order
from beton_tools.writer import WriteOptions
from fastft.photos.beton_holdout import as_source
from fastft.photos.duplicates import content_ids

FEW = 200  # images that one process encodes sooner than several have started


def ids_at_one_size(sets: Sequence[BetonSet]) -> list[np.ndarray]:
    """`content_ids` of each set, as if all images had been converted with the smallest `max_resolution` of the sets.

    Photographs are converted with a limit for a training, and test files mostly without one: larger JPEGs are shrunk and encoded
    here as that conversion did it, which gives the same bytes. Larger images that the conversion had to encode, such as PNGs, are
    not recognised.
    """
    limited = [options for betons in sets if (options := _options_of(betons)) is not None]
    sources = [as_source(betons) for betons in sets]
    with TemporaryDirectory() as folder:
        if limited:
            options = min(limited, key=lambda each: each.max_resolution or 0)
            places = [Path(folder) / str(k) for k in range(len(sets))]
            sources = [_shrunk(*each, options) for each in zip(sets, sources, places, strict=True)]
        return content_ids(list(sources))


def _options_of(betons: BetonSet) -> EncodeOptions | None:
    """How the images were converted; None if they kept their sizes, or it is not known."""
    manifest = Manifest.of_beton(betons.files[0].path)
    if manifest is None or not isinstance(manifest.options.get("max_resolution"), int):
        return None
    names = [f.name for f in fields(EncodeOptions) if f.name in manifest.options]
    try:
        return WriteOptions(**{name: manifest.options[name] for name in names})
    except (UserError, TypeError):  # of a manifest that was changed by hand
        return None


def _shrunk(betons: BetonSet, source: SpanSource, path: Path, options: EncodeOptions) -> SpanSource:
    """The images with the larger ones encoded by `options`, in the file `path`."""
    limit = options.max_resolution or 0
    large = np.flatnonzero(np.maximum(betons.heights, betons.widths) > limit).tolist()
    if not large:
        return source
    tasks = (Task(source.names[i], source.locate(i)) for i in large)
    archive_ids, offsets, lengths = (
        values.copy() for values in (source.archive_ids, source.offsets, source.lengths)
    )
    with path.open("wb") as file:
        results = encode_in_order(tasks, options, 0 if len(large) < FEW else usable_cpus())
        for i, result in zip(large, results, strict=True):
            if isinstance(result, EncodedImage):  # else it is no JPEG, and stays as it is
                archive_ids[i], offsets[i], lengths[i] = len(source.archives), file.tell(), len(result.data)
                file.write(result.data)
    return replace(
        source,
        archives=[*source.archives, str(path)],
        archive_stamps=[*source.archive_stamps, tuple(stamps_of([str(path)])[0].tolist())],
        archive_ids=archive_ids,
        offsets=offsets,
        lengths=lengths,
    )
