"""Check a `.beton`: tables, checksums, crop indexes, and that every image decodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from beton_tools import jpeg
from beton_tools.base.cgroup import usable_cpus
from beton_tools.base.console import ProgressCallback
from beton_tools.base.errors import UserError
from beton_tools.jpeg import index
from beton_tools.jpeg.markers import JpegError
from beton_tools.read.format import MAX_CLASSES, RAW_MODE, Beton
from beton_tools.read.manifest import Manifest, read_image_crc32

_CHUNK = 64  # images per task


@dataclass
class Report:
    """Result of a verification.

    Attributes:
        num_indexed: How many JPEGs have a correct crop index.
        has_labels: Whether a field can be read as classes, which is not so in FFCV's files with other targets.
        problems: (where, what), in file order.
    """

    path: str
    num_samples: int
    pages_checked: int = 0
    images_decoded: int = 0
    num_indexed: int = 0
    has_labels: bool = True
    problems: list[tuple[str, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(
    path: Path, workers: int | None = None, decode: bool = True, progress: ProgressCallback | None = None
) -> Report:
    """Check a file's consistency, and that it agrees with its manifest if it has one.

    Args:
        decode: Decode every image, which takes as long as an epoch. Otherwise only tables and checksums are read.

    Raises:
        UserError: The file cannot be opened as a `.beton`, or changes while it is being read.
    """
    beton, manifest = Beton.open(path), Manifest.of_beton(path)
    report = Report(str(path), beton.num_samples, has_labels=_has_labels(beton))
    if manifest is not None:
        report.problems += manifest.differences(beton)
    report.problems += _check_labels(beton, MAX_CLASSES if manifest is None else manifest.num_classes)
    pool = ThreadPoolExecutor(workers or usable_cpus())
    try:
        if manifest is not None and not report.problems:
            _check_pages(beton, manifest, report, pool)
            report.problems += _check_manifest(beton, manifest)
        if decode:
            _check_images(beton, report, pool, progress)
    finally:
        pool.shutdown(cancel_futures=True)
    beton.check_unchanged()
    return report


def _has_labels(beton: Beton) -> bool:
    try:
        return beton.labels is not None
    except UserError:
        return False


def _check_labels(beton: Beton, num_classes: int) -> Iterator[tuple[str, str]]:
    """Yield labels that are not classes, or a labels field that the reader refuses.

    Label sets have a column per class.
    """
    if not _has_labels(beton):
        if {"label", "labels"} & {field.name for field in beton.fields}:
            yield ("tables", "the label field is neither int nor array, so the file cannot be used for classification")
        return
    labels = beton.labels
    low, high = (0, labels.shape[1] - 1) if labels.ndim == 2 else (labels.min(), labels.max())
    if low < 0 or high >= num_classes:
        yield "tables", f"labels run from {low} to {high}, but should run from 0 to {num_classes - 1}"


def _check_manifest(beton: Beton, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a manifest that describes the file's pages."""
    for table in ("names", "contents", "groups"):
        try:
            getattr(manifest, table)
        except UserError as error:
            yield "manifest", str(error)
    if manifest.image_crc32 and manifest.image_crc32 != read_image_crc32(beton):
        yield "manifest", "image_crc32 does not match the images"
    for what, values in (("classes", manifest.classes), ("class_names", manifest.known_classes.labels)):
        twice = [name for name, count in Counter(values).items() if count > 1]
        if twice:
            yield "manifest", f"two {what} are called {twice[0]}"


def _check_pages(beton: Beton, manifest: Manifest, report: Report, pool: ThreadPoolExecutor) -> None:
    for page, crc in enumerate(pool.map(beton.page_crc32, range(beton.num_pages))):
        report.pages_checked += 1
        if crc != manifest.page_crc32[page]:
            start = beton.data_start + page * beton.page_size
            samples = np.flatnonzero((beton.pointers >= start) & (beton.pointers < start + beton.page_size))
            span = f"samples {samples.min()} to {samples.max()}" if samples.size else "no sample"
            report.problems.append((f"page {page}", f"checksum differs ({span})"))


def _check_images(beton: Beton, report: Report, pool: ThreadPoolExecutor, progress: ProgressCallback | None) -> None:
    chunks = [range(i, min(i + _CHUNK, len(beton))) for i in range(0, len(beton), _CHUNK)]
    done = 0
    for results in pool.map(lambda ids: _check_chunk(beton, ids), chunks):
        for sample_id, problem, indexed in results:
            report.images_decoded += not problem
            report.num_indexed += indexed
            if problem:
                report.problems.append((f"sample {sample_id}", problem))
        done += len(results)
        if progress is not None:
            progress(done, len(beton), done - report.images_decoded)


def _check_chunk(beton: Beton, ids: range) -> list[tuple[int, str, bool]]:
    """Return (id, problem or "", whether the crop index is correct) for each sample."""
    results = []
    for sample_id in ids:
        try:
            result = ("", False) if beton.modes[sample_id] == RAW_MODE else _check_jpeg(beton, sample_id)
        except MemoryError:
            size = f"{beton.heights[sample_id]} x {beton.widths[sample_id]} pixels"
            result = f"{size} do not fit the memory", False
        results.append((sample_id, *result))
    return results


def _check_jpeg(beton: Beton, sample_id: int) -> tuple[str, bool]:
    stored, indexed = beton.image_bytes(sample_id), False
    height, width = beton.heights[sample_id], beton.widths[sample_id]
    try:
        header = jpeg.parse(stored)
        indexed = index.read(stored) is not None
        if (header.height, header.width) != (height, width):
            return f"{header.height} x {header.width} pixels, but the metadata table states {height} x {width}", indexed
        jpeg.decode_rgb(stored)
    except JpegError as error:
        return str(error), indexed
    return "", indexed
