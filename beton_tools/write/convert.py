"""Convert a dataset to `.beton` files: one labelled set, or ImageNet's train and val splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from beton_tools.base.console import ProgressCallback
from beton_tools.base.errors import UserError
from beton_tools.read.class_list import Classes
from beton_tools.read.manifest import Manifest
from beton_tools.sources import SPLITS, Source, find_split, open_source
from beton_tools.sources.base import KnownClasses
from beton_tools.sources.folder import class_folders
from beton_tools.sources.remote import AnyPath, RemotePath, SourcePath, source_path, telling_what_is_read
from beton_tools.write.writer import WriteOptions, write_beton


def converted_path(whole: Path, options: WriteOptions | None) -> Path:
    """Return the file that a conversion to `whole` writes. A part has another name."""
    return whole if options is None or options.part is None else options.part.path(whole)


def convert_folder(
    data: AnyPath,
    out: Path,
    options: WriteOptions | None = None,
    progress: ProgressCallback | None = None,
    overwrite: bool = False,
    classes_of: Path | None = None,
    class_indices: bool = False,
    single_label: bool = False,
    classes_by_position: bool = False,
    say: Callable[[str], object] | None = None,
) -> Manifest:
    """Convert one labelled set (class folders, an archive, or a pattern of shards) to one file, or to a part of it.

    Args:
        classes_of: A converted file, such as the training file, whose classes determine the labels. Classes are matched by
            id, then by name.
        class_indices: Whether class folders' names are labels: images in folder 7 have the label 7 (ImageNet-V2).
        single_label: Whether a table's label cell such as "cat;dog" names one class, not two.
        classes_by_position: Whether numeric labels stand for the same labels in `classes_of`, whatever the names.
        say: Prints a line now and then while files at URLs are indexed.

    Raises:
        UserError: The images cannot be found or written. See `open_source` and `write_beton`.
    """
    with telling_what_is_read(say if isinstance(source_path(data), RemotePath) else None):
        source = open_labelled(data, classes_of, class_indices, single_label, classes_by_position)
    return write_beton(converted_path(out, options), source, options, progress, overwrite)


def open_labelled(
    data: AnyPath, classes_of: Path | None, class_indices: bool, single_label: bool, classes_by_position: bool
) -> Source:
    """Open the images that `convert_folder` converts."""
    if classes_of is None:
        if classes_by_position:
            raise UserError("--classes-by-position needs --classes-of, the file whose labels are meant")
        return open_source(data, class_indices=class_indices, single=single_label)
    manifest = Manifest.of_beton(classes_of)
    if manifest is None:
        raise UserError(
            f"{classes_of}: has no manifest that lists its classes. Give a file that `fastft convert` wrote"
        )
    known = KnownClasses.of(Classes.of(manifest.class_names or manifest.classes, manifest.classes), classes_by_position)
    return with_classes(open_source(data, None, known, class_indices, single_label), known, manifest.class_names)


def with_classes(source: Source, known: KnownClasses, class_names: Sequence[str] | None) -> Source:
    """Return a source that was opened with known classes, with readable class names and the notes about its labels."""
    names = None if class_names is None else tuple(class_names)
    return replace(source, class_names=names, notes=tuple(dict.fromkeys(known.notes)))


def convert_imagenet(
    data: AnyPath,
    out: Path,
    options: WriteOptions | None = None,
    progress_of: Callable[[str], AbstractContextManager[ProgressCallback | None]] = lambda split: nullcontext(),
    overwrite: bool = False,
    classes_by_position: bool = False,
    say: Callable[[str], object] | None = None,
) -> dict[str, Manifest]:
    """Convert `train` and `val` below `data` to `out/train.beton` and `out/val.beton`, or to a part of each.

    One of the two splits may be missing. Images are stored as timm's loader reads them, ignoring Exif orientation, because
    ImageNet accuracies are reported that way. The labels in val index the training classes. Both splits are listed
    before the first image is converted, so that a missing devkit is reported at once.

    Args:
        progress_of: split -> context manager whose value is a progress callback.
        classes_by_position: Whether numeric labels in val stand for the same labels in train, whatever the names.
        say: As for `convert_folder`.

    Raises:
        UserError: The images cannot be found or written. See `open_source` and `write_beton`.
    """
    data, options = source_path(data), replace(options or WriteOptions(), upright=False)
    with telling_what_is_read(say if isinstance(data, RemotePath) else None):
        sources = _open_splits(data, out, classes_by_position)
    manifests = {}
    for split, source in sources.items():
        with progress_of(split) as progress:
            path = converted_path(out / f"{split}.beton", options)
            manifests[split] = write_beton(path, source, options, progress, overwrite)
    return manifests


def _open_splits(data: SourcePath, out: Path, classes_by_position: bool) -> dict[str, Source]:
    present = [split for split in SPLITS if find_split(data, split) is not None]
    if not present:
        instead = "See `fastft convert imagenet --help` for the layouts"
        if isinstance(data, Path) and data.is_dir() and class_folders(data):
            instead = f"Convert one folder per class: `fastft convert folder --data {data} --out {out}/train.beton`"
        raise UserError(f"{data}: no train or val images. {instead}")
    sources: dict[str, Source] = {}
    for split in present:
        if (train := sources.get("train")) is None:
            sources[split] = open_source(data, split)
            continue
        known = KnownClasses.of(Classes.of(train.class_names or train.classes, train.classes), classes_by_position)
        sources[split] = with_classes(open_source(data, split, known), known, train.class_names)
    return sources
