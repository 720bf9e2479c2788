"""One or more `.beton` files, or some of their samples, as one table.

Sample ids run through the files in their order.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from beton_tools.base.cgroup import usable_cpus
from beton_tools.base.errors import UserError
from beton_tools.base.pixels import CHANNELS
from beton_tools.base.typed_json import Count, Document
from beton_tools.read.beton_paths import SUBSET, BetonPaths, describe_paths, find_betons
from beton_tools.read.format import MAX_CLASSES, Beton
from beton_tools.read.manifest import Manifest, read_checksum
from beton_tools.read.parts import Part
from beton_tools.read.sample_table import SampleTable, count_classes, image_field
from beton_tools.read.subset_file import FileIdentity, SubsetFile, is_subset_file, read_subset_file

MOST_THREADS = 16  # threads that open files: more would only wait for each other
READ_WHOLE = 1 << 30  # bytes: files without a manifest that are read to identify them; from memory in half a second
_LISTED_PARTS = 10  # number of missing parts to list


class Largest(NamedTuple):
    """Largest values over a file's samples, and the mean number of pixels."""

    height: int
    width: int
    num_bytes: int
    pixels: int
    pixels_and_bytes: int  # CHANNELS * pixels + num_bytes of one sample
    mean_pixels: float


@dataclass(frozen=True)
class FileClasses:
    """One file's classes and identity.

    Attributes:
        names: label -> name, or None without a manifest, as for FFCV's files.
        counts: int64 (C,), the number of samples with each label.
        checksum: From the manifest.
        part: From the manifest.
    """

    names: list[str] | None
    counts: np.ndarray
    checksum: str | None
    part: Part | None


class Content(Document, omit_defaults=True):
    """The content of a set of files. It is stored in checkpoints.

    Attributes:
        files: The files' names.
        identities: The files' identities, which change with their bytes.
        checksum: Checksum of the images, whatever the files are called. It is from the manifests. A file without a
            manifest is read whole, or if it is larger than READ_WHOLE, the checksum is None.
    """

    num_samples: Count
    files: list[str]
    identities: list[Count]
    checksum: str | None = None

    def has_same_images(self, other: Content) -> bool:
        """Return True if the samples are the same in the same order. The files may have other names."""
        if self.num_samples != other.num_samples or self.identities != other.identities:
            return False
        return None in (self.checksum, other.checksum) or self.checksum == other.checksum


@dataclass(frozen=True, eq=False)
class BetonSet(SampleTable):
    """The samples in one or more files. File f has the ids starts[f] to starts[f + 1] - 1.

    Attributes:
        files: The files. Their tables are views of this object's, unless it has only some of the samples.
        starts: int64 (F + 1,).
        descriptors: int32 (F,), the open files' descriptors.
        classes: Each file's classes.
        largest: Largest values over all samples.
        ids_in_files: int64 (N,), each sample's id in its file. None stands for all samples in the files.
    """

    named: str
    files: tuple[Beton, ...]
    starts: np.ndarray
    descriptors: np.ndarray
    classes: tuple[FileClasses, ...] = field(repr=False)
    largest: Largest
    ids_in_files: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def open(cls, data: BetonPaths, *, labelled: bool = True, opened: Sequence[BetonSet] = ()) -> BetonSet:
        """Open and validate files.

        Args:
            data: A file, a pattern, or several of them (see `find_betons`). A subset file stands for its samples.
            labelled: Whether to read classes and manifests too. Without them `labels` may be missing, or be other
                numbers.
            opened: Sets whose files are not opened again if `data` names them too.

        Raises:
            UserError: A file is missing or not a complete, consistent `.beton`, its manifest belongs to another file, a
                label is outside its classes, the files differ in fields or classes, or a file has changed since a
                subset was made of it.
        """
        if is_subset_file(data):
            return cls._open_subset(Path(data), opened)
        paths = find_betons(data)
        subset = next((path for path in paths if is_subset_file(path)), None)
        if subset is not None:
            raise UserError(f"{subset}: a subset ({SUBSET}) must be used alone. Name no other file beside it")
        whole = (betons for betons in opened if betons.ids_in_files is None)
        there = {b.path: (b, c) for betons in whole for b, c in zip(betons.files, betons.classes, strict=True)}
        with ThreadPoolExecutor(min(len(paths), usable_cpus(), MOST_THREADS)) as threads:
            found = list(threads.map(lambda path: there.get(path) or _open_file(path, labelled), paths))
        betons, classes = tuple(beton for beton, _ in found), tuple(of_file for _, of_file in found)
        _check_fields(betons)
        _check_classes(betons, classes)
        metadata, sizes = betons[0].metadata, betons[0].sizes
        starts = np.append(0, np.cumsum([len(beton) for beton in betons]))
        if len(betons) > 1:
            try:
                metadata, sizes = (_joined([getattr(b, t) for b in betons]) for t in ("metadata", "sizes"))
            except MemoryError as error:
                raise UserError(f"the tables of {starts[-1]:,} samples are larger than the memory") from error
            spans = [slice(begin, end) for begin, end in pairwise(starts.tolist())]
            betons = tuple(
                beton.with_tables(metadata[span], sizes[span]) for beton, span in zip(betons, spans, strict=True)
            )
        for table in (metadata, sizes):
            table.flags.writeable = False
        sets = [beton.label_sets for beton in betons]
        return cls(
            betons[0].fields,
            metadata,
            sizes,
            label_sets=sets[0] if len(sets) == 1 or sets[0] is None else np.concatenate(sets),  # type: ignore[arg-type]
            named=describe_paths(data),
            files=betons,
            starts=starts,
            descriptors=np.array([beton.descriptor for beton in betons], np.int32),
            classes=classes,
            largest=_largest(metadata[image_field(betons[0].fields).column], sizes),
        )

    @classmethod
    def _open_subset(cls, path: Path, opened: Sequence[BetonSet]) -> BetonSet:
        subset = read_subset_file(path)
        missing = next((file.path for file in subset.files if not os.path.lexists(file.path)), None)
        if missing is not None:
            raise UserError(f"{missing}: no such file, but {path} lists samples in it. Put it back")
        whole = cls.open([file.path for file in subset.files], opened=opened)
        subset.refuse_changed(whole.files, path)
        return replace(whole.take(subset.samples), named=str(path))

    def take(self, samples: np.ndarray) -> BetonSet:
        """Select samples, which are numbered from 0 and keep all classes.

        The files stay open as long as one of the sets exists.

        Args:
            samples: int64 (n,), ascending ids, at least one.
        """
        starts = np.searchsorted(samples, self.starts)
        if self.ids_in_files is None:
            in_files = samples - self.starts[self.files_of(samples)]
        else:
            in_files = self.ids_in_files[samples]
        sets = None if self.label_sets is None else self.label_sets[samples]
        taken = replace(
            self, metadata=self.metadata[samples], sizes=self.sizes[samples], label_sets=sets, starts=starts,
            ids_in_files=in_files,
        )  # fmt: skip
        for table in (taken.metadata, taken.sizes, in_files):
            table.flags.writeable = False
        spans = [slice(begin, end) for begin, end in pairwise(starts.tolist())]
        classes = tuple(
            replace(c, counts=count_classes(taken.labels[span], len(c.counts)))
            for c, span in zip(self.classes, spans, strict=True)
        )
        return replace(taken, classes=classes, largest=_largest(taken.image_column, taken.sizes))

    @property
    def title(self) -> str:
        return self.named

    @property
    def file_size(self) -> int:
        """Size of all files in bytes."""
        return sum(beton.file_size for beton in self.files)

    @property
    def has_class_names(self) -> bool:
        return any(c.names is not None for c in self.classes)

    @property
    def class_names(self) -> list[str]:
        """Names by label: from the manifests, otherwise "class 0" up to the highest label."""
        for of_file in self.classes:
            if of_file.names is not None:
                return of_file.names
        return [f"class {k}" for k in range(max(len(c.counts) for c in self.classes))]

    @property
    def class_counts(self) -> list[int]:
        """Number of samples in each class."""
        counts = np.zeros(len(self.class_names), np.int64)
        for of_file in self.classes:
            counts[: len(of_file.counts)] += of_file.counts
        return counts.tolist()

    @cached_property
    def content(self) -> Content:
        """Identify the samples and their order, to compare data between processes and runs.

        The result is the same wherever the files lie.
        """
        checksums = [self._checksum(number) for number in range(len(self.files))]
        joined = None
        if None not in checksums:
            several = hashlib.blake2b("".join(map(str, checksums)).encode(), digest_size=8).hexdigest()
            joined = checksums[0] if len(checksums) == 1 else several
        return Content(
            num_samples=self.num_samples, checksum=joined,
            files=[beton.path.name for beton in self.files], identities=[beton.identity() for beton in self.files],
        )  # fmt: skip

    def _checksum(self, number: int) -> str | None:
        """Return the checksum of a file's samples, or None for a large file without a manifest."""
        beton, checksum = self.files[number], self.classes[number].checksum
        if checksum is None and self.file_size <= READ_WHOLE:
            checksum = read_checksum(beton)
        if self.ids_in_files is None:
            return checksum
        ids = self.ids_in_files[self.starts[number] : self.starts[number + 1]]
        return hashlib.blake2b((checksum or "").encode() + ids.tobytes(), digest_size=8).hexdigest()

    @property
    def missing_parts(self) -> str:
        """List the first parts of a divided conversion that are missing, and how many more there are: "2/16, 5/16".

        The text is "" if none are missing, or if the files are not parts of one conversion.
        """
        parts = [c.part for c in self.classes]
        counts = {part.count for part in parts if part is not None}
        if None in parts or len(counts) != 1:
            return ""
        (count,) = counts
        present = {part.number for part in parts if part is not None}
        missing = (str(Part(k, count)) for k in range(1, count + 1) if k not in present)
        listed = ", ".join(islice(missing, _LISTED_PARTS))
        more = count - len(present) - _LISTED_PARTS
        return f"{listed} and {more:,} more" if more > 0 else listed

    def files_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of each sample's file. ids: (B,)."""
        if len(self.files) == 1:
            return np.zeros(len(ids), np.intp)
        return np.searchsorted(self.starts, ids, side="right") - 1

    def locate(self, sample_id: int) -> tuple[Beton, int]:
        """Return a sample's file, and its id there. Raises UserError if there is no such sample."""
        self.check_id(sample_id)
        number = int(self.files_of(np.array([sample_id]))[0])
        if self.ids_in_files is not None:
            return self.files[number], int(self.ids_in_files[sample_id])
        return self.files[number], sample_id - int(self.starts[number])

    def read_names(self) -> list[str] | None:
        """Return the N images' names in their sources, or None if a file has no manifest.

        Raises:
            UserError: The names in a manifest are damaged.
        """
        manifests = [Manifest.of_beton(beton.path) for beton in self.files]
        if any(manifest is None for manifest in manifests):
            return None
        names = [name for manifest in manifests if manifest is not None for name in manifest.names]
        return names if self.ids_in_files is None else [names[i] for i in self._ids_through_files().tolist()]

    def as_subset_file(self) -> SubsetFile:
        """Return these samples as a `SubsetFile`."""
        return SubsetFile([FileIdentity.of(beton) for beton in self.files], self._ids_through_files())

    def _ids_through_files(self) -> np.ndarray:
        """int64 (N,): each sample's id among all samples in the files."""
        if self.ids_in_files is None:
            return np.arange(len(self), dtype=np.int64)
        first = np.append(0, np.cumsum([beton.num_samples for beton in self.files]))
        ids: np.ndarray = first[self.files_of(np.arange(len(self)))] + self.ids_in_files
        return ids

    def image_bytes(self, sample_id: int) -> np.ndarray:
        beton, own_id = self.locate(sample_id)
        return beton.image_bytes(own_id)

    def check_unchanged(self) -> None:
        """Raise UserError if a file was written to or truncated since it was opened."""
        for beton in self.files:
            beton.check_unchanged()


def _open_file(path: Path, labelled: bool) -> tuple[Beton, FileClasses]:
    beton = Beton.open(path)
    if not labelled:
        return beton, FileClasses(None, np.zeros(0, np.int64), None, None)
    return beton, _read_classes(beton, _read_manifest(beton))


def _joined(tables: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate tables as bytes, because NumPy copies structured rows slowly, field by field."""
    return np.concatenate([table.view(np.uint8) for table in tables]).view(tables[0].dtype)


def _read_manifest(beton: Beton) -> Manifest | None:
    """Read the manifest beside the file, if there is one. Raises UserError if it describes another file."""
    manifest = Manifest.of_beton(beton.path)
    described = manifest and (manifest.num_samples, manifest.file_size, manifest.tables_crc32)
    if described and described != (beton.num_samples, beton.file_size, beton.tables_crc32()):
        raise UserError(
            f"{beton.path}: its manifest belongs to another file. Write the file again, or delete the manifest"
        )
    return manifest


def _read_classes(beton: Beton, manifest: Manifest | None) -> FileClasses:
    """Read a file's classes. Raises UserError if a label is negative or too large."""
    labels = beton.labels
    lowest, highest = int(labels.min()), int(labels.max()) if labels.ndim == 1 else labels.shape[1] - 1
    limit = min(MAX_CLASSES if manifest is None else manifest.num_classes, MAX_CLASSES)
    if lowest < 0 or highest >= limit:
        raise UserError(
            f"{beton.path}: labels range from {lowest} to {highest}, but should range from 0 to {limit - 1}. Write the file again"
        )
    counts = count_classes(labels)
    if manifest is None:
        return FileClasses(None, counts, None, None)
    names = [manifest.class_label(k) for k in range(manifest.num_classes)]
    return FileClasses(names, counts, manifest.checksum, manifest.part)


def _largest(image: np.ndarray, sizes: np.ndarray) -> Largest:
    pixels = image["height"].astype(np.int64) * image["width"]
    columns = (image["height"], image["width"], sizes, pixels, CHANNELS * pixels + sizes)
    height, width, num_bytes, most, both = (int(values.max()) for values in columns)
    return Largest(height, width, num_bytes, most, both, float(pixels.mean()))


# agreement ------------------------------------------------------------------------------------------------------------


def _check_fields(betons: Sequence[Beton]) -> None:
    names = [[field.name for field in beton.fields] for beton in betons]
    for beton, own in zip(betons, names, strict=True):
        if beton.fields != betons[0].fields:
            raise UserError(
                f"{beton.path} has the fields {own}, but {betons[0].path} has {names[0]}. Give files with the same fields"
            )


def _check_classes(betons: Sequence[Beton], classes: Sequence[FileClasses]) -> None:
    """Refuse files whose manifests name different classes.

    A file without a manifest may not have labels beyond them.
    """
    named = [(b, c.names) for b, c in zip(betons, classes, strict=True) if c.names is not None]
    if not named:
        return
    first, names = named[0]
    for beton, own_names in named[1:]:
        if len(own_names) != len(names):
            raise UserError(
                f"{beton.path} has {len(own_names)} classes, but {first.path} has {len(names)}. "
                f"Convert it with --classes-of {first.path}"
            )
        label = next((k for k, (a, b) in enumerate(zip(names, own_names, strict=True)) if a != b), None)
        if label is not None:
            raise UserError(
                f"{beton.path}: class {label} is {own_names[label]}, but in {first.path} it is {names[label]}. "
                f"Convert it with --classes-of {first.path}"
            )
    for beton, own in zip(betons, classes, strict=True):
        if len(own.counts) > len(names):
            raise UserError(
                f"{beton.path}: labels reach {len(own.counts) - 1}, but {first.path} has {len(names)} classes. Give files with "
                "the same classes"
            )
