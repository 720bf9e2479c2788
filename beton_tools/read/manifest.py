"""`X.beton.manifest.json`: what the `.beton` format cannot store, such as class names and checksums."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from beton_tools.base.atomic import atomic_output, sync
from beton_tools.base.errors import UserError, require
from beton_tools.base.names import MAX_NAME_BYTES, Names, escape_undecodable
from beton_tools.base.typed_json import Count, check, check_version
from beton_tools.base.user_files import read_user_file
from beton_tools.read.format import Beton, align_up
from beton_tools.read.parts import Part

Crc32 = Annotated[int, Meta(ge=0, lt=1 << 32)]
FORMAT = "beton-manifest"
VERSION = 1
MAX_FILE_BYTES = 256 << 20  # a manifest of ImageNet has 10 MB, one of 20 million images 160 MB
_MAX_NAMES_BYTES = 1 << 31  # for all names together; bounds what a hostile, compressed table may unpack to


@dataclass(frozen=True)
class Manifest:
    """The manifest, which is written beside a `.beton`.

    Attributes:
        fingerprint: Hash of the inputs. Files with the same fingerprint are the same.
        data_start: Offset of the first page.
        tables_crc32: Checksum of everything before and after the pages.
        page_crc32: Checksum of every page, in file order.
        classes: label -> folder name, wnid or number.
        class_names: label -> readable name, or None where unknown.
        source, options: What was converted, and how.
        encodings: Reason for the encoding -> number of images. "kept" is lossless.
        skipped: (name, reason) for each image that could not be stored.
        damaged: Names of JPEGs with damaged data, stored as Pillow reads them.
        left_out: suffix -> number of files in class folders or tars that were not recognised as images.
        packed_names: `names` as the file stores them.
    """

    fingerprint: str
    num_samples: Count
    page_size: Count
    data_start: Count
    file_size: Count
    tables_crc32: Crc32
    page_crc32: list[Crc32]
    classes: list[str]
    class_names: list[str] | None
    source: dict[str, str]
    options: dict[str, str | bool | int | None]
    encodings: dict[str, Count]
    skipped: list[tuple[str, str]]
    damaged: list[str]
    left_out: dict[str, Count]
    packed_names: dict[str, str] = field(repr=False)

    @cached_property
    def names(self) -> Names:
        """Sample id -> path in the source. The names are unpacked at first use, which takes 70 MB for ImageNet.

        Raises:
            UserError: The name table is damaged.
        """
        try:
            return _unpack_names(self.packed_names, self.num_samples)
        except (ValueError, KeyError, MemoryError, zlib.error) as error:
            raise UserError(
                f"the names in the manifest are damaged ({error}). Write the .beton again, or delete its manifest"
            ) from error

    @property
    def checksum(self) -> str:
        """Hash of the file's bytes. It is equal for two conversions with the same result, whatever the folder names."""
        return _hash_of_crcs([self.tables_crc32, *self.page_crc32])

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def part(self) -> Part | None:
        """The part of a divided conversion that the file is, or None for a whole conversion."""
        try:
            return Part.parse(str(self.options.get("part")))
        except UserError:
            return None

    def class_label(self, label: int) -> str:
        """Return a class's most readable name as valid text, because folder names need not be UTF-8."""
        return escape_undecodable((self.class_names or self.classes)[label])

    @classmethod
    def of_beton(cls, beton_path: str | os.PathLike[str]) -> Manifest | None:
        """Load the manifest beside a `.beton`. Returns None if there is none (FFCV's writer writes none).

        Raises:
            UserError: As for `load`.
        """
        path = manifest_path(beton_path)
        return cls.load(path) if path.exists() else None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read and validate a manifest.

        Raises:
            UserError: The file cannot be read, or is not a complete and consistent manifest.
        """
        data = read_user_file(path, MAX_FILE_BYTES, "a manifest that `fastft convert` wrote")
        try:
            return _from_json(str(path), json.loads(data))
        except (ValueError, RecursionError, MemoryError) as error:
            raise UserError(f"{path}: not a manifest ({error}). Write the .beton again, or delete this file") from error

    def save(self, path: Path) -> None:
        """Write the file atomically. Raises UserError if the disk is full or the folder is not writable."""
        entries = {"format": FORMAT, "version": VERSION} | {
            f.name: getattr(self, f.name) for f in fields(self) if f.name != "packed_names"
        }
        entries["names"] = self.packed_names
        with (
            atomic_output(path, "Correct this, then run the same command again") as partial,
            partial.open("w", encoding="utf-8") as file,
        ):
            json.dump(entries, file, indent=1, ensure_ascii=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        sync(path.parent)

    def summary(self) -> dict[str, Any]:
        """Return everything except the long tables, for `beton info`."""
        long = ("packed_names", "page_crc32", "classes", "class_names")
        return {key: value for key, value in asdict(self).items() if key not in long}


def read_checksum(beton: Beton) -> str:
    """Return the `checksum` that the file's manifest has, or would have. This reads the whole file."""
    pages = range(align_up(beton.data_end - beton.data_start, beton.page_size) // beton.page_size)
    return _hash_of_crcs([beton.tables_crc32(), *map(beton.page_crc32, pages)])


def _hash_of_crcs(crcs: Sequence[int]) -> str:
    return hashlib.blake2b(np.array(crcs, "<u4").tobytes(), digest_size=8).hexdigest()


def manifest_path(beton_path: str | os.PathLike[str]) -> Path:
    path = Path(beton_path)
    return path.with_name(path.name + ".manifest.json")


def pack_names(names: Names) -> dict[str, str]:
    """Pack names in the form that a manifest stores."""
    lengths = np.diff(names.offsets).astype("<u2")
    return {
        "encoding": "base64(zlib(UTF-8 names one after another)), base64(zlib(their lengths, u16))",
        "text": base64.b64encode(zlib.compress(names.blob, 6)).decode(),
        "lengths": base64.b64encode(zlib.compress(lengths.tobytes(), 6)).decode(),
    }


def _unpack_names(packed: dict[str, str], count: int) -> Names:
    lengths = np.frombuffer(_inflate(packed["lengths"], 2 * count), "<u2").astype(np.int64)
    unfit = "the name table does not fit the number of samples"
    require(len(lengths) == count and lengths.max(initial=0) <= MAX_NAME_BYTES, unfit)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    blob = _inflate(packed["text"], int(offsets[-1]))
    require(len(blob) == offsets[-1], unfit)
    return Names(blob, offsets)


def _inflate(text: str, limit: int) -> bytes:
    require(limit <= _MAX_NAMES_BYTES, "the name table is too large")
    data = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), limit + 1)
    require(len(data) <= limit, "the name table is longer than stated")
    return data


def _from_json(where: str, entries: Any) -> Manifest:
    require(isinstance(entries, dict) and entries.get("format") == FORMAT, f"its format is not {FORMAT!r}")
    check_version(where, entries, VERSION)
    manifest: Manifest = check("it", {**entries, "packed_names": entries.get("names")}, Manifest)
    fits = manifest.class_names is None or len(manifest.class_names) == len(manifest.classes)
    require(fits, "class_names and classes differ in length")
    return manifest
