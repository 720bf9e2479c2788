"""Images without class folders (ImageNet's validation set), labelled by the devkit, Kaggle's table or a text file."""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from beton_tools.base.errors import UserError
from beton_tools.base.image_formats import is_image_name
from beton_tools.base.names import Names
from beton_tools.sources.base import (
    FileSource,
    SpanSource,
    are_positions,
    check_classes,
    check_labels,
    labels_of,
    no_labels,
    note_numbers,
    sort_labels,
)
from beton_tools.sources.folder import is_folder
from beton_tools.sources.remote import SourcePath, open_source_file
from beton_tools.sources.side_files import class_names_of, folder_and_parents, is_present, read_lines, read_side_file
from beton_tools.sources.tars import SpanTable, members, read_member

_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_SYNSETS = "meta.mat"
_DEVKIT = "ILSVRC2012_devkit_t12"
_MAX_DEVKIT_BYTES = 256 << 20  # unpacked. The real one has 10 MB
_KAGGLE = "LOC_val_solution.csv"
_TEXT = "val.txt"
_NUM_CLASSES = 1000  # the devkit's first thousand synsets are classes, the others are their ancestors
_USABLE_FILES = (
    f"{_DEVKIT}.tar.gz (or the folder unpacked from it), {_KAGGLE}, or {_TEXT} with lines of file name and class"
)


def flat_source(folder: Path, classes: Sequence[str] | None = None) -> FileSource:
    """Open the image files in one folder, sorted by name."""
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if is_image_name(e.name) and not is_folder(e))
    classes, label_of = find_truth(folder, names, classes)
    labels = np.array([label_of[name] for name in names])
    return FileSource("flat", folder, classes, class_names_of(classes, folder), labels, Names.of(names))


def val_tar_source(path: SourcePath, classes: Sequence[str] | None = None) -> SpanSource:
    """Open ILSVRC2012_img_val.tar. Images are sorted by name, which is also the order in its unpacked folder."""
    table = SpanTable()
    with table.open_archive(path) as file:
        files = members(file, path, left_out=table.left_out)
        images = [m for m in files if is_image_name(PurePath(m.name).name)]
    classes, label_of = find_truth(path.parent, [m.name for m in images], classes)
    for member in images:
        table.add(PurePath(member.name).name, label_of[member.name], member)
    return table.source("ilsvrc-tar", path, classes, class_names_of(classes, path.parent), table.names.__getitem__)


# labels ---------------------------------------------------------------------------------------------------------------


def find_truth(
    folder: SourcePath, image_names: Sequence[str], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Find the labels of images without class folders.

    Args:
        folder: The images' folder. Files with labels are searched for in it and in four parent folders.
        classes: Class list that the labels index (the training classes). None derives it from the labels.

    Returns:
        The classes (sorted wnids or numbers), and a mapping from image file names to indices into them.
    """
    stems = sorted(Path(name).stem for name in image_names)
    for candidate in folder_and_parents(folder):
        for name, read in ((_GROUND_TRUTH, _read_devkit), (_KAGGLE, _read_kaggle), (_TEXT, _read_text)):
            wnid_of = read(candidate, stems)
            if wnid_of is not None:
                return _build_truth(f"{candidate}: {name}", wnid_of, image_names, classes)
    raise no_labels(folder, f"add {_USABLE_FILES}")


def _build_truth(
    file: str, wnid_of: dict[str, str], image_names: Sequence[str], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Build `find_truth`'s result. `wnid_of` maps image file names without suffix to wnids or class numbers."""
    missing = [name for name in image_names if Path(name).stem not in wnid_of]
    if missing:
        raise UserError(
            f"{file} lacks {len(missing)} of {len(image_names)} images, such as {missing[0]}. "
            "Complete the file, download it again, or remove it"
        )
    if classes is not None and are_positions(wnid_of.values(), classes):
        classes = check_labels(file, max(map(int, wnid_of.values()), default=-1), classes)
        note_numbers(file, classes)
        wnid_of = {stem: classes[int(number)] for stem, number in wnid_of.items()}
    classes = check_classes(file, sort_labels(set(wnid_of.values())), classes, "Correct the file")
    label = labels_of(classes)
    return tuple(classes), {name: label[wnid_of[Path(name).stem]] for name in image_names}


def _read_devkit(folder: SourcePath, stems: Sequence[str]) -> dict[str, str] | None:
    """Read labels from the devkit: line k in the ground truth is image k's ILSVRC id, which meta.mat maps to a wnid."""
    read = _devkit_reader(folder)
    if read is None:
        return None
    with _readable(f"{folder}: {_GROUND_TRUTH}"):
        ids = [int(line) for line in read(_GROUND_TRUTH).split()]
    if len(ids) != len(stems):
        raise UserError(
            f"{folder}: {_GROUND_TRUTH} has {len(ids)} lines for {len(stems)} images. Add the missing images or lines"
        )
    wnids = _synset_wnids(folder, read(_SYNSETS))
    if not all(i in wnids for i in ids):
        raise UserError(f"{folder}: {_GROUND_TRUTH} contains a class that {_SYNSETS} lacks. Download the devkit again")
    return {stem: wnids[i] for stem, i in zip(stems, ids, strict=True)}


@contextmanager
def _readable(file: str) -> Iterator[None]:
    """Turn any error into one line, because SciPy raises many types for damaged files."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file} cannot be read ({reason}). Download it again") from error


def _devkit_reader(folder: SourcePath) -> Callable[[str], bytes] | None:
    """Return a function that reads a devkit file by name, from the devkit's folder or archive.

    None if neither exists.
    """
    for data in (folder, folder / "data", folder / _DEVKIT / "data", folder / "devkit" / "data"):
        if is_present(data / _GROUND_TRUTH):
            return lambda name: read_side_file(data / name, _MAX_DEVKIT_BYTES, "the devkit's file")
    archive = folder / f"{_DEVKIT}.tar.gz"
    if not is_present(archive):
        return None
    with _readable(f"{archive}:"), open_source_file(archive, _USABLE_FILES) as file, gzip.open(file) as stream:
        content = stream.read(_MAX_DEVKIT_BYTES + 1)
    if len(content) > _MAX_DEVKIT_BYTES:
        raise UserError(
            f"{archive}: unpacks to more than {_MAX_DEVKIT_BYTES >> 20} MiB. Download the task 1 & 2 devkit"
        )
    unpacked = io.BytesIO(content)
    contents = {Path(m.name).name: read_member(unpacked, archive, m) for m in list(members(unpacked, archive))}
    missing = {_GROUND_TRUTH, _SYNSETS} - contents.keys()
    if missing:
        raise UserError(f"{archive}: has no {min(missing)}. Download the task 1 & 2 devkit")
    return contents.__getitem__


def _synset_wnids(folder: SourcePath, meta: bytes) -> dict[int, str]:
    """Read ILSVRC id -> wnid for the classes from the devkit's meta.mat."""
    from scipy.io import loadmat  # type: ignore[import-untyped]

    with _readable(f"{folder}: {_SYNSETS}"):
        synsets: Any = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        pairs = [(int(s["ILSVRC2012_ID"]), str(s["WNID"])) for s in synsets]
    return {number: wnid for number, wnid in pairs if number <= _NUM_CLASSES}


def _read_kaggle(folder: SourcePath, stems: Sequence[str]) -> dict[str, str] | None:
    """Read labels from LOC_val_solution.csv: ImageId, "wnid x y x y [wnid ...]".

    An image's boxes all have the same wnid.
    """
    lines = read_lines(folder / _KAGGLE)
    if lines is None:
        return None
    with _readable(f"{folder / _KAGGLE}:"):
        rows = list(csv.reader(lines))
    return {row[0]: row[1].split()[0] for row in rows if len(row) >= 2 and row[1].split() and row[0] != "ImageId"}


def _read_text(folder: SourcePath, stems: Sequence[str]) -> dict[str, str] | None:
    """Read labels from val.txt. Each line has a file name and a class (a wnid, or a number in sorted wnid order)."""
    lines = read_lines(folder / _TEXT)
    if lines is None:
        return None
    wanted, wnid_of = set(stems), dict[str, str]()
    for name, wnid in (row for row in map(str.split, lines) if len(row) == 2):
        stem = Path(name).stem
        if wnid_of.setdefault(stem, wnid) != wnid and stem in wanted:
            raise UserError(
                f"{folder / _TEXT} gives {stem} the classes {wnid_of[stem]} and {wnid}. Names are compared without suffix: "
                "correct the file, or rename the image"
            )
    return wnid_of
