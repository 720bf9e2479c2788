"""`X.subset.json`: some samples from `.beton` files, such as held-out ones. You can give it where a `.beton` is read.

It holds no images, only the files' paths, what identifies the files, and the samples' ids.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeGuard

import numpy as np
from msgspec import Meta

from beton_tools.base.errors import UserError, require
from beton_tools.base.typed_json import Count, Whole, check, check_version
from beton_tools.base.user_files import read_user_file
from beton_tools.read.beton_paths import SUBSET, BetonPaths, named_files
from beton_tools.read.format import Beton

FORMAT, VERSION = "beton-subset", 1
MAX_SUBSET_BYTES = 256 << 20  # the ids take 11 MB for ImageNet, and 200 MB for 20 million images


@dataclass(frozen=True)
class FileIdentity:
    """A file and the values that change when it is written again. The images' bytes are not read."""

    path: str
    num_samples: Whole
    file_size: Count
    tables_crc32: Count

    @classmethod
    def of(cls, beton: Beton) -> FileIdentity:
        return cls(str(beton.path.absolute()), beton.num_samples, beton.file_size, beton.tables_crc32())

    @property
    def content(self) -> list[int]:
        """The values that identify the file, without its path."""
        return [self.num_samples, self.file_size, self.tables_crc32]


_Files = Annotated[list[FileIdentity], Meta(min_length=1)]
_Samples = Annotated[list[Count], Meta(min_length=1)]


@dataclass(frozen=True, eq=False)
class SubsetFile:
    """Some samples. `samples` is int64 (n,), ascending ids through `files`."""

    files: list[FileIdentity]
    samples: np.ndarray

    def to_json(self) -> str:
        entries = {"format": FORMAT, "version": VERSION, "files": [asdict(file) for file in self.files]}
        return json.dumps(entries | {"samples": self.samples.tolist()}) + "\n"

    def refuse_changed(self, betons: Sequence[Beton], path: Path) -> None:
        """Raise UserError if one of the opened files is not the one that the subset at `path` was made from."""
        for stored, beton in zip(self.files, betons, strict=True):
            if FileIdentity.of(beton).content != stored.content:
                raise UserError(
                    f"{beton.path} has changed since {path} was made from it. Restore the file, or make the subset again"
                )


def is_subset_file(data: BetonPaths) -> TypeGuard[str | os.PathLike[str]]:
    """Return True if `data` names a subset file."""
    return isinstance(data, (str, os.PathLike)) and os.fspath(data).endswith(SUBSET)


def read_subset_file(path: Path) -> SubsetFile:
    """Read and validate a subset file. Raises UserError if it cannot be read or is not a subset file."""
    data = read_user_file(path, MAX_SUBSET_BYTES, "a subset file that fastft train wrote")
    try:
        return _from_json(str(path), json.loads(data))
    except (ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path}: not a subset file ({error}). Run the same fastft train again") from error


def listed_files(data: str) -> tuple[list[str], str]:
    """Return the files that `data` names, for reports, and which part of their images a subset file lists.

    The second value is "" if `data` is not a subset file.
    """
    try:
        subset = read_subset_file(Path(data)) if is_subset_file(data) else None
    except UserError:
        subset = None
    if subset is None:
        return named_files(data), ""
    total = sum(file.num_samples for file in subset.files)
    return [file.path for file in subset.files], f"{len(subset.samples):,} of {total:,} images"


def _from_json(where: str, entries: Any) -> SubsetFile:
    require(isinstance(entries, dict) and entries.get("format") == FORMAT, f"its format is not {FORMAT!r}")
    check_version(where, entries, VERSION)
    files = check("its files", entries.get("files"), _Files)
    samples = check("its samples", entries.get("samples"), _Samples)
    total = sum(file.num_samples for file in files)
    ids = np.array(samples, np.int64)
    ascends = (np.diff(ids) > 0).all() and samples[-1] < total
    require(ascends, f"its samples are not ascending numbers from 0 to {total - 1}")
    return SubsetFile(files, ids)
