"""Write a source of labelled images to a `.beton` that stock FFCV 1.0.2 reads.

The file's bytes depend only on the images and the options, not on the number of workers or on interruptions.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from beton_tools.base.cgroup import usable_cpus
from beton_tools.base.console import ProgressCallback, printable
from beton_tools.base.errors import UserError
from beton_tools.base.image_formats import check_colour
from beton_tools.base.names import Names
from beton_tools.read.format import Beton
from beton_tools.read.manifest import Manifest, manifest_path, pack_tables, read_image_crc32
from beton_tools.read.parts import Part
from beton_tools.sources.base import MODIFIED, Source
from beton_tools.write.images import QUALITY, SUBSAMPLING, SUBSAMPLINGS, WRITE_MODES, EncodedImage, EncodeOptions
from beton_tools.write.pagefile import PageFile, Written
from beton_tools.write.workers import encode_in_order
from beton_tools.write.write_order import choose

ON_ERROR = ("fail", "skip")
_COMPARED = 256  # images whose sizes are part of a dataset's hash
MIN_PAGE_SIZE = 64 << 10
MAX_PAGE_SIZE = 2 << 30  # the largest power of two that the header's u4 holds
# numeric option -> smallest and largest value. None stands for no limit
LIMITS: dict[str, tuple[int, int | None]] = {
    "max_resolution": (1, None),
    "quality": (1, 100),
    "workers": (0, None),
    "subset_per_class": (1, None),
    "shuffle_seed": (0, (1 << 63) - 1),
}


def limits(option: str) -> str:
    """Describe an option's limits as text: "1 to 100", "1 or more"."""
    low, high = LIMITS[option]
    return f"{low} or more" if high is None else f"{low} to {high}"


@dataclass(frozen=True, kw_only=True)
class WriteOptions(EncodeOptions):
    """Options for the images (see EncodeOptions) and for the file.

    Attributes:
        workers: How many processes encode. None means one per usable CPU. With 0, images are encoded in this process.
        subset_per_class: Write only this many images from each class.
        shuffle_seed: Write in the order that this seed gives. None keeps the source's order.
        part: Write only this part of the images, with the same classes and order as the whole.
        on_error: "fail" at the first image that cannot be stored, or "skip" it and list it in the manifest.
    """

    workers: int | None = None
    subset_per_class: int | None = None
    shuffle_seed: int | None = None
    part: Part | None = None
    on_error: str = "fail"

    def __post_init__(self) -> None:
        for option, (low, high) in LIMITS.items():
            value = getattr(self, option)
            if value is not None and not low <= value <= (value if high is None else high):
                raise _impossible(option, value, limits(option))
        choices_of = {"subsampling": (None, *SUBSAMPLINGS), "on_error": ON_ERROR, "write_mode": WRITE_MODES}
        for option, choices in choices_of.items():
            if getattr(self, option) not in choices:
                raise _impossible(option, getattr(self, option), " or ".join(filter(None, choices)))
        check_colour("--background", self.background)
        if not (MIN_PAGE_SIZE <= self.page_size <= MAX_PAGE_SIZE and self.page_size.bit_count() == 1):
            raise UserError(
                f"page_size cannot be {self.page_size}. Give a power of two, {MIN_PAGE_SIZE} to {MAX_PAGE_SIZE}"
            )

    def recorded(self) -> dict[str, Any]:
        """Return the options that determine the file's bytes."""
        values = asdict(self)
        for name in ("workers", "on_error", "part"):
            del values[name]
        for name, default in (("quality", QUALITY), ("subsampling", SUBSAMPLING)):
            if values[name] == default:  # also for lossless images, whose own defaults are better
                values[f"{name}_of_all"] = True
            values[name] = values[name] or default
        return values if self.part is None else values | {"part": str(self.part)}


def _impossible(option: str, value: object, allowed: str) -> UserError:
    return UserError(f"--{option.replace('_', '-')} cannot be {value}. Give {allowed}")


def write_beton(
    out_path: str | os.PathLike[str],
    source: Source,
    options: WriteOptions | None = None,
    progress: ProgressCallback | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write the images in `source` to `out_path`, and the manifest beside it.

    This continues what an interrupted run with the same inputs left beside `out_path`. A complete file from the same
    inputs is not written again.

    Returns:
        The manifest.

    Raises:
        UserError: An image cannot be stored (on_error "fail"), no image can be stored, the disk is full, a worker
            process died while it was starting, or `out_path` exists and was written from other inputs.
    """
    options = options or WriteOptions()
    path = Path(out_path)
    sets = source.labels.ndim == 2
    if sets and source.labels.shape[1] > options.page_size:
        raise UserError(
            f"{path}: an image's labels do not fit a page with {options.page_size} bytes. Give a larger page_size"
        )
    _make_folder(path)
    order = choose(source.labels, options.subset_per_class, options.shuffle_seed)
    dataset = _dataset_hash(source, order, options)
    if options.part is not None:
        order = options.part.take(order)
    inputs, stamps = _fingerprint(source, order, options), source.stamps(order)
    fingerprint = hashlib.blake2b(stamps.tobytes(), key=inputs.encode(), digest_size=16).hexdigest()
    if path.exists() and not overwrite:
        return _finished(path, fingerprint, source.classes, options)
    with PageFile(path, options.page_size, inputs, stamps) as pages:
        for position, reason in pages.written.skipped[:1]:  # by an earlier run with on_error "skip"
            if options.on_error == "fail":
                raise _bad_image(source.names[int(order[position])], reason)
        _write_images(pages, source, order, options, progress)
        written = pages.seal(source.labels[order] if sets else None)
        if written.count == 0:
            position, reason = written.skipped[0]
            first = f"{printable(source.names[int(order[position])])}: {reason}"
            raise UserError(f"{path}: none of the {len(order)} images could be stored. The first is {first}")
        manifest = _describe(pages, written, source, order, options, fingerprint, dataset)
        path.unlink(missing_ok=True)  # an old file must never be beside the new manifest
        manifest.save(manifest_path(path))  # before the file: a .beton always has its manifest
        pages.publish()
    return manifest


def _finished(path: Path, fingerprint: str, classes: Sequence[str], options: WriteOptions) -> Manifest:
    """Return an existing file's manifest if it has the same inputs. Otherwise raise UserError."""
    manifest = Manifest.of_beton(path)
    if (
        manifest is None
        or (manifest.fingerprint, manifest.classes) != (fingerprint, list(classes))
        or manifest.file_size != path.stat().st_size
    ):
        raise UserError(
            f"{path} exists already, made from other images or with other options. Delete it or pass --overwrite"
        )
    if options.on_error == "fail" and manifest.skipped:
        name, reason = manifest.skipped[0]
        raise UserError(
            f"{printable(name)}: {reason}. {path} was finished without it. Pass --on-error skip to keep it, "
            "or repair the image and pass --overwrite"
        )
    return manifest


def _bad_image(name: str, reason: str) -> UserError:
    return UserError(
        f"{printable(name)}: {reason}. Pass --on-error skip to continue without it, or repair it. If it is "
        "removed, the conversion starts over"
    )


def _make_folder(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a folder. Give a file name that ends in .beton")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be created ({error.strerror})") from error


def _fingerprint(source: Source, order: np.ndarray, options: WriteOptions) -> str:
    """Hash the images' names, labels, groups and order, and the options. The stamps stand for the images' contents."""
    return _digest([source.kind, str(source.root), options.recorded()], source, order)


def _dataset_hash(source: Source, order: np.ndarray, options: WriteOptions) -> str:
    """Hash what all parts of a conversion share, wherever the images lie.

    Sizes stand for the images' contents, because copies on several hosts may have other times. Only some images are
    compared: examining millions of files in a network folder takes as long as reading a part of them.
    """
    some = order[np.linspace(0, len(order) - 1, min(_COMPARED, len(order)), dtype=int)]
    sizes = np.delete(source.stamps(some), MODIFIED, axis=1)
    options = replace(options, part=None)
    return _digest([source.kind, source.classes, options.recorded(), sizes.tolist()], source, order)


def _digest(described: list[Any], source: Source, order: np.ndarray) -> str:
    digest = hashlib.blake2b(json.dumps(described).encode())
    arrays = (a.tobytes() for a in (source.names.offsets, source.labels, order))
    groups = () if source.groups is None else (source.groups.blob, source.groups.offsets.tobytes())
    for part in (source.names.blob, *arrays, *groups):
        digest.update(part)
    return digest.hexdigest()[:32]


def _write_images(
    pages: PageFile, source: Source, order: np.ndarray, options: WriteOptions, progress: ProgressCallback | None
) -> None:
    start, total = pages.next_position, len(order)
    locations = map(source.locate, order[start:].tolist())
    workers = usable_cpus() if options.workers is None else options.workers
    workers = min(workers, total - start)
    skipped = len(pages.written.skipped)
    if progress is not None:
        progress(start, total, skipped)
    with closing(encode_in_order(locations, options, workers)) as results:
        for i, result in zip(order[start:].tolist(), results, strict=True):
            if isinstance(result, EncodedImage):
                pages.append(result, 0 if source.labels.ndim == 2 else int(source.labels[i]))
            elif result.is_lost:
                raise UserError(f"{printable(source.names[i])}: {result.reason}")
            elif options.on_error == "skip":
                pages.skip(result.reason)
                skipped += 1
            else:
                raise _bad_image(source.names[i], result.reason)
            if progress is not None:
                progress(pages.next_position, total, skipped)


def _describe(
    pages: PageFile,
    written: Written,
    source: Source,
    order: np.ndarray,
    options: WriteOptions,
    fingerprint: str,
    dataset: str,
) -> Manifest:
    file_size = pages.part.stat().st_size
    stored, beton = order[written.positions[: written.count]], Beton.open(pages.part)
    names, groups = (
        None if values is None else Names.of(values[i] for i in stored.tolist())
        for values in (source.names, source.groups)
    )
    assert names is not None
    described = {"labels": source.reading, "columns": source.columns, "notes": ". ".join(source.notes)}
    return Manifest(
        fingerprint=fingerprint,
        dataset=dataset,
        num_samples=written.count,
        page_size=options.page_size,
        data_start=pages.data_start,
        file_size=file_size,
        tables_crc32=beton.tables_crc32(),
        image_crc32=read_image_crc32(beton),
        page_crc32=written.page_crcs,
        classes=list(source.classes),
        class_names=list(source.class_names) if source.class_names is not None else None,
        source={"kind": source.kind, "root": str(source.root)} | {key: text for key, text in described.items() if text},
        options=options.recorded(),
        encodings=dict(sorted(written.encodings.items())),
        skipped=[(source.names[int(order[p])], reason) for p, reason in written.skipped],
        damaged=[source.names[int(stored[i])] for i in written.damaged],
        left_out=source.left_out,
        tables=pack_tables(names, written.contents[: written.count], groups),
    )
