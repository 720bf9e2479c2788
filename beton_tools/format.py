"""FFCV's `.beton` layout, version 2, and a reader that trusts nothing in the file.

    header | field descriptors | metadata, one row per sample | padding | pages of image bytes | allocation
    table

Every number is little-endian. Pointers are absolute file offsets; a sample never straddles a page; the
allocation table is the last thing in the file. Layout facts: ffcv 1.0.2, `ffcv/types.py` and `ffcv/fields/`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from beton_tools.errors import UserError

VERSION = 2
MAX_CLASSES = 1 << 20  # a label beyond is not a class number (but a bounding box, an id or damage)
DEFAULT_PAGE_SIZE = 8 << 20  # what FFCV's writer uses: 8 MiB
JPEG_MODE, RAW_MODE = 0, 1
# The densest JPEG spends a bit on each 8 x 8 block (512 pixels a byte). A file that claims more pixels than
# twice
# that would make readers allocate gigabytes for nothing.
MAX_PIXELS_PER_BYTE = 1024

HEADER_DTYPE = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
FIELD_DTYPE = np.dtype([("type_id", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", 1024)])
IMAGE_DTYPE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
ALLOC_DTYPE = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])

FLOAT_TYPE, INT_TYPE, IMAGE_TYPE = 0, 1, 2
_COLUMN_DTYPES = {  # type id -> what one sample of the field occupies in the metadata row
    FLOAT_TYPE: np.dtype("<f8"),
    INT_TYPE: np.dtype("<i8"),
    IMAGE_TYPE: IMAGE_DTYPE,
    3: np.dtype([("ptr", "<u8"), ("size", "<u8")]),  # bytes
    4: np.dtype("<u8"),  # ndarray
    5: np.dtype([("ptr", "<u8"), ("size", "<u8")]),  # json
    6: np.dtype("<u8"),  # torch tensor
}


def metadata_dtype(type_ids: list[int]) -> np.dtype:
    """Row type of the metadata table: fields `f0`, `f1`, ... aligned as FFCV aligns them."""
    return np.dtype([("", _COLUMN_DTYPES[t]) for t in type_ids], align=True)


SAMPLE_DTYPE = metadata_dtype([IMAGE_TYPE, INT_TYPE])  # our files: `image`, `label`; 24 bytes


def align_up(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


@dataclass(frozen=True)
class Field:
    name: str
    type_id: int
    column: str  # its name in the metadata rows


@dataclass(frozen=True)
class Beton:
    """An open `.beton`. Arrays are indexed by sample id, N samples.

    metadata: structured array (N,), dtype as in the file, in memory; data: the whole file as read-only uint8
    memory map; pointers, sizes: int64 (N,), where each sample's image bytes lie in `data` (checked to be
    inside it).
    """

    path: Path
    page_size: int
    fields: tuple[Field, ...]
    metadata: np.ndarray
    data: np.memmap = field(repr=False)
    pointers: np.ndarray = field(repr=False)
    sizes: np.ndarray = field(repr=False)
    data_start: int
    data_end: int

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Beton:
        """Map and validate a file. Raises UserError for anything that is not a complete, consistent
        `.beton`."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                return _open(cls, path, file)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror or error}); give a .beton file"
            ) from error

    @property
    def num_samples(self) -> int:
        return len(self.metadata)

    def __len__(self) -> int:
        return len(self.metadata)

    @property
    def image_column(self) -> np.ndarray:
        return self.metadata[_only(self.fields, IMAGE_TYPE).column]

    @property
    def labels(self) -> np.ndarray:
        """int64 (N,). Raises UserError if the file has no int field."""
        ints = [f for f in self.fields if f.type_id == INT_TYPE]
        if not ints:
            raise UserError(f"{self.path}: has no label (int) field; it cannot be used for classification")
        named = [f for f in ints if f.name == "label"]
        return self.metadata[(named or ints)[0].column]

    @property
    def heights(self) -> np.ndarray:
        return self.image_column["height"]

    @property
    def widths(self) -> np.ndarray:
        return self.image_column["width"]

    @property
    def modes(self) -> np.ndarray:
        """uint8 (N,): JPEG_MODE or RAW_MODE."""
        return self.image_column["mode"]

    @property
    def num_pages(self) -> int:
        return (self.data_end - self.data_start) // self.page_size

    def image_bytes(self, sample_id: int) -> np.ndarray:
        """uint8 view of one sample's stored bytes (a JPEG, or height * width * 3 raw pixels)."""
        if not 0 <= sample_id < self.num_samples:
            raise UserError(f"{self.path}: no sample {sample_id}; ids run from 0 to {self.num_samples - 1}")
        start = int(self.pointers[sample_id])
        return self.data[start : start + int(self.sizes[sample_id])]

    def read_bytes(self, sample_id: int) -> bytes:
        return self.image_bytes(sample_id).tobytes()


def _only(fields: tuple[Field, ...], type_id: int) -> Field:
    return next(f for f in fields if f.type_id == type_id)


def _open(cls: type[Beton], path: Path, file) -> Beton:  # type: ignore[no-untyped-def]
    file_size = os.fstat(file.fileno()).st_size
    header = _read_header(path, file, file_size)
    fields = _read_fields(path, file, int(header["num_fields"]), file_size)
    dtype = metadata_dtype([f.type_id for f in fields])
    start = HEADER_DTYPE.itemsize + len(fields) * FIELD_DTYPE.itemsize
    num_samples, page_size = int(header["num_samples"]), int(header["page_size"])
    data_end = int(header["alloc_table_ptr"])
    if num_samples == 0 or start + num_samples * dtype.itemsize > data_end:
        raise _damaged(path, f"claims {num_samples} samples, which its size rules out")
    metadata = np.fromfile(file, dtype, num_samples)
    metadata.flags.writeable = False
    data = np.memmap(path, np.uint8, mode="r")
    if len(data) != file_size:
        raise _damaged(path, "changed while it was being opened")
    image = metadata[_only(fields, IMAGE_TYPE).column]
    pointers, sizes = _locate(path, image["data_ptr"], data[data_end:].view(ALLOC_DTYPE))
    _check_spans(path, image, pointers, sizes, start + metadata.nbytes, data_end)
    first_page = int(pointers.min()) // page_size * page_size
    return cls(path, page_size, fields, metadata, data, pointers, sizes, first_page, data_end)


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: not a complete .beton file ({what}); write it again with `fastft convert`")


def _read_header(path: Path, file, file_size: int) -> np.void:  # type: ignore[no-untyped-def]
    if file_size < HEADER_DTYPE.itemsize:
        raise _damaged(path, f"{file_size} bytes are too few")
    header = np.fromfile(file, HEADER_DTYPE, 1)[0]
    if header["version"] != VERSION:
        raise _damaged(path, f"version {header['version']}, expected {VERSION}")
    page_size, table = int(header["page_size"]), int(header["alloc_table_ptr"])
    if page_size == 0 or page_size & (page_size - 1):
        raise _damaged(path, f"page size {page_size} is not a power of two")
    if table == 0:  # FFCV's writer fills it in last, so a killed one leaves 0
        raise _damaged(path, "its writer was interrupted")
    if table > file_size or (file_size - table) % ALLOC_DTYPE.itemsize:
        raise _damaged(path, f"the allocation table at {table} does not end at the file's {file_size} bytes")
    return header


def _read_fields(path: Path, file, count: int, file_size: int) -> tuple[Field, ...]:  # type: ignore[no-untyped-def]
    if count == 0 or HEADER_DTYPE.itemsize + count * FIELD_DTYPE.itemsize > file_size:
        raise _damaged(path, f"claims {count} fields")
    fields = []
    for i, row in enumerate(np.fromfile(file, FIELD_DTYPE, count)):
        name = row["name"].tobytes().split(b"\0")[0].decode("ascii", "replace")
        if int(row["type_id"]) not in _COLUMN_DTYPES:
            raise UserError(
                f"{path}: field {name!r} has type {row['type_id']}, which only its writer can read"
            )
        fields.append(Field(name, int(row["type_id"]), f"f{i}"))
    if sum(f.type_id == IMAGE_TYPE for f in fields) != 1:
        raise UserError(f"{path}: needs exactly one RGB image field, has {[f.name for f in fields]}")
    return tuple(fields)


def _locate(path: Path, image_ptr: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 pointers and sizes per sample, from the allocation table (any order, as FFCV's workers leave
    it)."""
    pointers = image_ptr.astype(np.int64)
    if len(table) == len(pointers) and np.array_equal(table["ptr"], image_ptr):
        sizes = table["size"]
    else:
        order = np.argsort(table["ptr"], kind="stable")
        found = np.searchsorted(table["ptr"], image_ptr, sorter=order)
        if len(table) == 0 or found.max() >= len(table):
            raise _damaged(path, "an image is missing from the allocation table")
        rows = order[found]
        if not np.array_equal(table["ptr"][rows], image_ptr):
            raise _damaged(path, "an image is missing from the allocation table")
        sizes = table["size"][rows]
    return pointers, sizes.astype(np.int64)


def _check_spans(
    path: Path, image: np.ndarray, pointers: np.ndarray, sizes: np.ndarray, low: int, high: int
) -> None:
    """Every image lies in [low, high), has pixels, and a raw one has as many bytes as its size says."""
    # compared by subtraction: pointer + size could overflow int64 in a hostile file
    bad = (pointers < low) | (pointers > high) | (sizes <= 0) | (sizes > high - pointers)
    area = image["height"].astype(np.int64) * image["width"]
    bad |= (
        (area == 0)
        | (area // MAX_PIXELS_PER_BYTE > sizes)
        | (image["mode"] > RAW_MODE)
        | ((image["mode"] == RAW_MODE) & (sizes != area * 3))
    )
    if bad.any():
        raise _damaged(
            path, f"sample {int(np.argmax(bad))} points outside the file or has an impossible size"
        )
