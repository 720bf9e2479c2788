"""Which images are in several .beton files, also where they are stored in different sizes."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from beton_tools.base.cgroup import usable_cpus
from beton_tools.base.errors import UserError
from beton_tools.base.progress_bar import progress
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.manifest import Manifest
from beton_tools.sources.base import SpanSource
from beton_tools.write.images import EncodedImage, EncodeOptions
from beton_tools.write.workers import Task, encode_in_order
from beton_tools.write.writer import WriteOptions
from fastft.photos.beton_holdout import as_source
from fastft.photos.duplicates import Content, content_ids

FEW = 200  # images that one process encodes sooner than several have started
MOST = 20_000  # larger images that are encoded, which takes a core some minutes


def ids_at_one_size(sets: Sequence[BetonSet]) -> list[np.ndarray]:
    """`content_ids` of each set, as if all images had been converted with the smallest `max_resolution` of the sets.

    Photographs are converted with a limit for a training, and test files mostly without one: larger JPEGs are shrunk and encoded
    here as that conversion did it, which gives the same bytes. Larger images that the conversion had to encode, such as PNGs, and
    larger images of sets that have more than MOST are not recognised.
    """
    sources = [as_source(betons) for betons in sets]
    limited = [options for betons in sets if (options := _options_of(betons)) is not None]
    if not limited:
        return content_ids(sources)
    options = min(limited, key=lambda each: each.max_resolution or 0)
    return content_ids(sources, [_shrunk(*each, options) for each in zip(sets, sources, strict=True)])


def count_shared(images: BetonSet, others: Sequence[BetonSet]) -> int:
    """The number of images of a set that are also in one of the others, compared as in `ids_at_one_size`."""
    ids, *other_ids = ids_at_one_size([images, *others])
    return int(np.isin(ids, np.concatenate(other_ids)).sum())


def _options_of(betons: BetonSet) -> EncodeOptions | None:
    """How the images were converted; None if they kept their sizes, or it is not known."""
    manifest = Manifest.of_beton(betons.files[0].path)
    if manifest is None or not isinstance(manifest.options.get("max_resolution"), int):
        return None
    stored: dict[str, Any] = manifest.options
    names = [f.name for f in fields(EncodeOptions) if f.name in stored]
    try:
        return WriteOptions(**{name: stored[name] for name in names})
    except (UserError, TypeError):  # of a manifest that was changed by hand
        return None


def _shrunk(betons: BetonSet, source: SpanSource, options: EncodeOptions) -> dict[int, Content]:
    """The larger images as `options` encode them. One that cannot be encoded, such as raw pixels, is left out."""
    large = np.flatnonzero(np.maximum(betons.heights, betons.widths) > (options.max_resolution or 0)).tolist()
    if not 0 < len(large) <= MOST:
        return {}
    tasks = (Task(source.names[i], source.locate(i)) for i in large)
    found = {}
    with progress(f"comparing {source.root}") as show:
        results = encode_in_order(tasks, options, 0 if len(large) < FEW else usable_cpus())
        for done, (i, result) in enumerate(zip(large, results, strict=True), 1):
            if isinstance(result, EncodedImage):
                found[i] = Content.of(result.data)
            show(done, len(large), done - len(found))
    return found
