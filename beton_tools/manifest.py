"""`X.beton.manifest.json`: what the `.beton` format has no room for."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from beton_tools.errors import UserError
from beton_tools.names import MAX_NAME_BYTES, Names
from beton_tools.pagefile import sync_folder

FORMAT = "beton-manifest"
VERSION = 1
_BROKEN = (ValueError, TypeError, KeyError, OverflowError, zlib.error)  # what hostile contents raise


@dataclass(frozen=True)
class Manifest:
    """Written beside a `.beton`.

    fingerprint: of the inputs: same fingerprint, same file. classes: label -> folder name, wnid or number;
    class_names: the same for people, where known. packed_names: `names` as the file holds them. source,
    options: what was converted, and how. encodings: how many images were kept bit for bit and why others were
    re-encoded. skipped: (name, reason). damaged: names of JPEGs with broken data, stored as Pillow reads them.
    left_out: suffix -> how many files in class folders were taken for no images.
    page_crc32: of every page, in file order, from `data_start`; tables_crc32: of all that lies before and after
    the pages.
    """

    fingerprint: str
    num_samples: int
    page_size: int
    data_start: int
    file_size: int
    tables_crc32: int
    page_crc32: list[int]
    classes: list[str]
    class_names: list[str] | None
    source: dict[str, str]
    options: dict[str, Any]
    encodings: dict[str, int]
    skipped: list[tuple[str, str]]
    damaged: list[str]
    left_out: dict[str, int]
    packed_names: dict[str, str] = field(repr=False)

    @cached_property
    def names(self) -> Names:
        """Sample id -> where it came from; unpacked when first asked for, which takes 70 MB for ImageNet.

        Raises UserError when the table is broken.
        """
        try:
            return _unpack_names(self.packed_names, self.num_samples)
        except _BROKEN as error:
            raise UserError(
                f"the names in the manifest are broken ({error}); write the .beton again, or delete its manifest"
            ) from error

    @property
    def checksum(self) -> str:
        """Of the file's bytes: equal for two conversions that came out the same, from whatever folder."""
        crcs = np.array([self.tables_crc32, *self.page_crc32], "<u4")
        return hashlib.blake2b(crcs.tobytes(), digest_size=8).hexdigest()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def class_label(self, label: int) -> str:
        """The most readable name of a class."""
        return (self.class_names or self.classes)[label]

    @classmethod
    def of_beton(cls, beton_path: str | os.PathLike[str]) -> Manifest | None:
        """The manifest beside a `.beton`; None where there is none (FFCV's writer leaves none)."""
        path = manifest_path(beton_path)
        return cls.load(path) if path.exists() else None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Manifest:
        """Raises UserError for anything but a whole manifest."""
        try:
            return _from_json(json.loads(Path(path).read_bytes()))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        except (*_BROKEN, RecursionError) as error:
            raise UserError(
                f"{path}: not a manifest ({error}); write the .beton again, or delete this file"
            ) from error

    def save(self, path: Path) -> None:
        """Atomically. Raises UserError where the disk is full or closed to us."""
        entries = {"format": FORMAT, "version": VERSION} | {
            f.name: getattr(self, f.name) for f in fields(self) if f.name != "packed_names"
        }
        entries["names"] = self.packed_names
        part = path.with_name(path.name + ".part")
        try:
            with part.open("w", encoding="utf-8") as file:
                json.dump(entries, file, indent=1, ensure_ascii=True)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); mend that, then run the same command again"
            ) from error
        sync_folder(path.parent)

    def summary(self) -> dict[str, Any]:
        """What `beton info` shows: everything but the long tables."""
        long = ("packed_names", "page_crc32", "classes", "class_names")
        return {key: value for key, value in asdict(self).items() if key not in long}


def manifest_path(beton_path: str | os.PathLike[str]) -> Path:
    path = Path(beton_path)
    return path.with_name(path.name + ".manifest.json")


def pack_names(names: Names) -> dict[str, str]:
    """What a manifest holds of its names."""
    lengths = np.diff(names.offsets).astype("<u2")
    return {
        "encoding": "base64(zlib(UTF-8 names one after another)), base64(zlib(their lengths, u16))",
        "text": base64.b64encode(zlib.compress(names.blob, 6)).decode(),
        "lengths": base64.b64encode(zlib.compress(lengths.tobytes(), 6)).decode(),
    }


def _unpack_names(packed: dict[str, str], count: int) -> Names:
    lengths = np.frombuffer(_inflate(packed["lengths"], 2 * count), "<u2").astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if len(lengths) != count or lengths.max(initial=0) > MAX_NAME_BYTES:
        raise ValueError("its name table does not fit its number of samples")
    blob = _inflate(packed["text"], int(offsets[-1]))
    if len(blob) != offsets[-1]:
        raise ValueError("its name table does not fit its number of samples")
    return Names(blob, offsets)


def _inflate(text: str, limit: int) -> bytes:
    data = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), limit + 1)
    if len(data) > limit:
        raise ValueError("its name table is too long")
    return data


def _from_json(entries: Any) -> Manifest:
    if not isinstance(entries, dict) or entries.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT!r}")
    if entries.get("version") != VERSION:
        raise ValueError(f"version {entries.get('version')!r}, expected {VERSION}")
    entries.setdefault("damaged", [])  # as in manifests that know of none
    entries.setdefault("left_out", {})
    _check(entries)
    values = {f.name: entries[f.name] for f in fields(Manifest) if f.name != "packed_names"}
    values["skipped"] = [(str(name), str(reason)) for name, reason in entries["skipped"]]
    return Manifest(**values, packed_names=entries["names"])


_COUNTS = ("num_samples", "page_size", "data_start", "file_size", "tables_crc32")


def _check(entries: dict[str, Any]) -> None:
    for key in _COUNTS:
        if type(entries[key]) is not int or not 0 <= entries[key] < 1 << 63:
            raise ValueError(f"{key} is {entries[key]!r}")
    if not isinstance(entries["fingerprint"], str):
        raise ValueError("fingerprint is no text")
    _check_list(entries["page_crc32"], int, "page_crc32")
    _check_list(entries["classes"], str, "classes")
    _check_list(entries["damaged"], str, "damaged")
    if entries["class_names"] is not None:
        _check_list(entries["class_names"], str, "class_names")
        if len(entries["class_names"]) != len(entries["classes"]):
            raise ValueError("class_names and classes differ in length")
    for key in ("source", "options", "encodings", "left_out", "names"):
        if not isinstance(entries[key], dict):
            raise ValueError(f"{key} is no table")
    _check_list(list(entries["left_out"].values()), int, "left_out")


def _check_list(value: Any, of: type, name: str) -> None:
    if not isinstance(value, list) or not all(type(v) is of for v in value):
        raise ValueError(f"{name} is no list of {of.__name__}")
