"""`X.beton.manifest.json`: what the `.beton` format cannot store, such as class names and checksums.

The long tables, which have a value for each sample, are the file's last entry. They are read when they are first used.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from beton_tools.base.atomic import atomic_output, sync
from beton_tools.base.errors import UserError, require
from beton_tools.base.names import MAX_NAME_BYTES, Names, escape_undecodable
from beton_tools.base.typed_json import Count, check, check_version
from beton_tools.base.user_files import open_user_file, read_user_file
from beton_tools.read.class_list import Classes
from beton_tools.read.format import Beton, align_up
from beton_tools.read.parts import Conversion, Part

Crc32 = Annotated[int, Meta(ge=0, lt=1 << 32)]
FORMAT = "beton-manifest"
VERSION = 2
NAMES_ONLY = 1  # the version before, whose only long table is `names`
MAX_FILE_BYTES = 512 << 20  # ImageNet's manifest has 25 MB, a manifest for 20 million images 380 MB
CLEAR, ANIMATED = "transparent ", "animated "  # occur within keys in `Manifest.encodings`
CHECKED_IMAGES = 16  # images whose checksums tell whether a file and a manifest belong together
_MAX_NAMES_BYTES = 1 << 31  # for all names together. This bounds what a hostile, compressed table may unpack to
_EXPECTED = "a manifest that `fastft convert` wrote"
_CHUNK = 1 << 18  # bytes
# as `Manifest.save` writes it. A string in JSON has no line break, so this occurs nowhere else.
_TABLES = b'\n "tables": '


@dataclass(frozen=True)
class Manifest:
    """The manifest, which is written beside a `.beton`.

    Attributes:
        fingerprint: Hash over the inputs. Files with the same fingerprint are the same.
        dataset: Hash over the source's names and labels, the order, and the options. All parts of a conversion share it.
            None in version 1 manifests.
        image_crc32: Checksums of CHECKED_IMAGES images, from the first to the last sample at equal distances. Version 1
            has none.
        data_start: The first page's offset.
        tables_crc32: Checksum of everything before and after the pages.
        page_crc32: Each page's checksum, in file order.
        classes: label -> the class's id: folder name, wnid or number.
        class_names: label -> readable name, or None where the id is the name.
        source, options: What was converted, and how.
        encodings: Reason for the encoding -> number of images. "kept" is lossless.
        skipped: (name, reason) for each image that could not be stored.
        damaged: Names of JPEGs with damaged data. They are stored as Pillow reads them.
        left_out: suffix -> how many files in class folders or tars were not recognised as images.
        tables: `names`, `contents` and `groups` as the file stores them, in JSON.
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
    dataset: str | None = None
    image_crc32: list[Crc32] = field(default_factory=list)
    tables: memoryview = field(default=memoryview(b"{}"), repr=False)

    @cached_property
    def names(self) -> Names:
        """Sample id -> path in the source. The names are unpacked at first use, which takes 70 MB for ImageNet.

        Raises:
            UserError: The table is damaged.
        """
        return self._unpack("names", lambda packed: _unpack_names(packed, self.num_samples))

    @cached_property
    def groups(self) -> Names | None:
        """Sample id -> group, "" for none, from the group column of a table. None if the source has no groups.

        Raises:
            UserError: The table is damaged.
        """
        return self._unpack("groups", lambda packed: packed and _unpack_names(packed, self.num_samples))

    @cached_property
    def contents(self) -> np.ndarray | None:
        """Sample id -> content id of the source file, uint64 (N,). None in version 1 manifests.

        Raises:
            UserError: The table is damaged.
        """
        return self._unpack("contents", lambda packed: packed and _unpack_contents(packed, self.num_samples))

    def _unpack(self, name: str, unpack: Callable[[Any], Any]) -> Any:
        try:
            stored = msgspec.json.decode(self.tables, type=dict[str, msgspec.Raw])  # parses none of them
            return unpack(json.loads(bytes(stored.get(name, b"null"))))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError, zlib.error) as error:
            raise UserError(
                f"the {name} in the manifest are damaged ({error}). Write the .beton again, or delete its manifest"
            ) from error

    @property
    def checksum(self) -> str:
        """Hash over the file's bytes. It is equal for two conversions with the same result, whatever the folder names."""
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

    @property
    def background(self) -> str | None:
        """The colour under transparent pixels. None if no image has them."""
        return str(self.options.get("background")) if any(CLEAR in how for how in self.encodings) else None

    @property
    def animations(self) -> int:
        """How many images are an animation's first frame, or the first of several pages."""
        return sum(count for how, count in self.encodings.items() if ANIMATED in how)

    @property
    def conversion(self) -> Conversion:
        options = tuple(sorted((name, value) for name, value in self.options.items() if name != "part"))
        return Conversion(self.dataset, options, self.part, self.checksum)

    @cached_property
    def known_classes(self) -> Classes:
        """The classes, as valid text, because folder names need not be UTF-8."""
        ids = tuple(map(escape_undecodable, self.classes))
        return Classes(ids if self.class_names is None else tuple(map(escape_undecodable, self.class_names)), ids)

    def class_label(self, label: int) -> str:
        """Return a class's most readable name that no other class has, as valid text."""
        return self.known_classes.labels[label]

    @classmethod
    def of_beton(cls, beton_path: str | os.PathLike[str]) -> Manifest | None:
        """Load the manifest beside a `.beton`. Returns None if there is none (FFCV's writer writes none).

        Raises:
            UserError: As for `load`.
        """
        path = manifest_path(beton_path)
        return cls.load(path) if path.exists() else None

    @classmethod
    def of_opened(cls, beton: Beton, tables: bool = False) -> Manifest | None:
        """Load the manifest beside an open `.beton`, and check that it describes this file. tables: see `load`.

        Raises:
            UserError: As for `load`, the manifest belongs to another file, or the file has changed since it was opened.
        """
        path = manifest_path(beton.path)
        manifest = cls.load(path, tables) if path.exists() else None
        if manifest is not None and not manifest.describes(beton):
            beton.check_unchanged()
            raise UserError(
                f"{beton.path}: its manifest belongs to another file. Write the file again, or delete the manifest"
            )
        return manifest

    def describes(self, beton: Beton) -> bool:
        """Return True if the tables match the file's, and so do most of the images that are compared.

        Images are compared because equally large raw images have the same tables, whatever they show. A few images may
        differ, because they can be damaged. Reading them gives an error that names them. Version 1 manifests have no image
        checksums. Pages are compared instead, but only if all images have the same number of bytes.
        """
        if any(self.differences(beton)):
            return False
        if self.image_crc32:
            pairs = list(zip(read_image_crc32(beton), self.image_crc32, strict=False))
        elif beton.sizes.min() < beton.sizes.max():
            return True
        else:
            pairs = [(beton.page_crc32(page), self.page_crc32[page]) for page in {0, len(self.page_crc32) - 1}]
        return 2 * sum(now != then for now, then in pairs) <= len(pairs) - 1

    def differences(self, beton: Beton) -> Iterator[tuple[str, str]]:
        """Yield (where, what) for differences between the manifest and the file's header and tables."""
        pairs = {
            "num_samples": (beton.num_samples, self.num_samples),
            "page_size": (beton.page_size, self.page_size),
            "file_size": (beton.file_size, self.file_size),
            "pages": (beton.num_pages, len(self.page_crc32)),
        }
        for what, (actual, stated) in pairs.items():
            if actual != stated:
                yield "manifest", f"{what} is {actual}, but the manifest states {stated}"
        if beton.tables_crc32() != self.tables_crc32:
            yield "tables", "header, metadata or allocation table changed since they were written"

    @classmethod
    def load(cls, path: str | os.PathLike[str], tables: bool = True) -> Manifest:
        """Read and validate a manifest.

        Args:
            tables: Whether to read the long tables, which take up most of the file.

        Raises:
            UserError: The file cannot be read, or is not a complete and consistent manifest.
        """
        head = None if tables else _read_head(path)
        data = read_user_file(path, MAX_FILE_BYTES, _EXPECTED) if head is None else b""
        try:
            return _from_json(str(path), *(_divide(data) if head is None else (head, memoryview(b"{}"))))
        except (ValueError, RecursionError, MemoryError) as error:
            raise UserError(f"{path}: not a manifest ({error}). Write the .beton again, or delete this file") from error

    def save(self, path: Path) -> None:
        """Write the file atomically. Raises UserError if the disk is full or the folder is not writable."""
        entries = {"format": FORMAT, "version": VERSION} | {
            f.name: getattr(self, f.name) for f in fields(self) if f.name != "tables"
        }
        with (
            atomic_output(path, "Correct this, then run the same command again") as partial,
            partial.open("wb") as file,
        ):
            file.write(json.dumps(entries, indent=1, ensure_ascii=True).encode()[: -len("\n}")])
            for part in (b",", _TABLES, self.tables, b"\n}\n"):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        sync(path.parent)

    def summary(self) -> dict[str, Any]:
        """Return everything except the long tables, for `beton info`."""
        long = ("tables", "page_crc32", "classes", "class_names")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in long}


def read_checksum(beton: Beton) -> str:
    """Return the `checksum` that the file's manifest has, or would have. This reads the whole file."""
    pages = range(align_up(beton.data_end - beton.data_start, beton.page_size) // beton.page_size)
    return _hash_of_crcs([beton.tables_crc32(), *map(beton.page_crc32, pages)])


def read_image_crc32(beton: Beton) -> list[int]:
    """Return this file's `Manifest.image_crc32`."""
    checked = np.linspace(0, len(beton) - 1, min(CHECKED_IMAGES, len(beton)), dtype=int)
    return [zlib.crc32(beton.image_bytes(sample).data) for sample in checked.tolist()]


def _hash_of_crcs(crcs: Sequence[int]) -> str:
    return hashlib.blake2b(np.array(crcs, "<u4").tobytes(), digest_size=8).hexdigest()


def manifest_path(beton_path: str | os.PathLike[str]) -> Path:
    path = Path(beton_path)
    return path.with_name(path.name + ".manifest.json")


def pack_tables(names: Names, contents: np.ndarray, groups: Names | None) -> memoryview:
    """Pack the long tables in the form that a manifest stores. contents: uint64 (N,)."""
    tables = {
        "names": pack_names(names),
        "contents": {
            "encoding": "base64(first 64 bits of the SHA-256 of each source file, u64)",
            "ids": base64.b64encode(contents.astype("<u8").tobytes()).decode(),
        },
        "groups": None if groups is None else pack_names(groups),
    }
    return memoryview(json.dumps(tables).encode())


def pack_names(names: Names) -> dict[str, str]:
    lengths = np.diff(names.offsets).astype("<u2")
    return {
        "encoding": "base64(zlib(UTF-8 names one after another)), base64(zlib(their lengths, u16))",
        "text": base64.b64encode(zlib.compress(names.blob, 6)).decode(),
        "lengths": base64.b64encode(zlib.compress(lengths.tobytes(), 6)).decode(),
    }


def _unpack_contents(packed: dict[str, str], count: int) -> np.ndarray:
    require(len(packed["ids"]) <= 11 * count + 4, "the table is longer than stated")
    ids = np.frombuffer(base64.b64decode(packed["ids"], validate=True), "<u8")
    require(len(ids) == count, "the table does not have one row per sample")
    return ids


def _unpack_names(packed: dict[str, str], count: int) -> Names:
    lengths = np.frombuffer(_inflate(packed["lengths"], 2 * count), "<u2").astype(np.int64)
    unfit = "the name table does not match the samples"
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


def _read_head(path: str | os.PathLike[str]) -> Any:
    """Read a manifest's JSON without the long tables. Returns None if it cannot be divided into these parts."""
    data, searched = bytearray(), 0
    with open_user_file(path, _EXPECTED) as file:
        while len(data) <= MAX_FILE_BYTES and (more := file.read(_CHUNK)):
            data += more
            if (at := data.find(_TABLES, searched)) >= 0:
                with suppress(ValueError, RecursionError):
                    return json.loads(data[:at].rstrip(b",") + b"}")
                return None
            searched = max(0, len(data) - len(_TABLES))
    return None


def _divide(data: bytes) -> tuple[Any, memoryview]:
    """Return (a manifest's JSON without the long tables, the long tables as they are stored).

    The tables are not parsed here, because they take up most of the file and opening a `.beton` does not need them.
    """
    at = data.find(_TABLES)
    if at >= 0:
        try:
            end = data.rindex(b"\n}")
            return json.loads(data[:at].rstrip(b",") + b"}"), memoryview(data)[at + len(_TABLES) : end]
        except ValueError:
            pass  # not written by `Manifest.save`, or damaged
    entries = json.loads(data)
    if not isinstance(entries, dict):
        return entries, memoryview(b"")
    tables = {"names": entries.get("names")} if entries.get("version") == NAMES_ONLY else entries.get("tables")
    return entries, memoryview(json.dumps(tables).encode())


def _from_json(where: str, entries: Any, tables: memoryview) -> Manifest:
    require(isinstance(entries, dict) and entries.get("format") == FORMAT, f"its format is not {FORMAT!r}")
    if entries.get("version") != NAMES_ONLY:
        check_version(where, entries, VERSION)
    known = {key: value for key, value in entries.items() if key not in ("tables", "names")}
    manifest: Manifest = replace(check("it", known, Manifest), tables=tables)
    fits = manifest.class_names is None or len(manifest.class_names) == len(manifest.classes)
    require(fits, "class_names and classes differ in length")
    return manifest
