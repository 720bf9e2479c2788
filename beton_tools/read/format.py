"""FFCV's `.beton` layout, version 2: a writer for its tables, and a reader that validates everything in the file.

    header | field descriptors | metadata, one row per sample | padding | pages of image bytes | allocation table

Every number is little-endian. Pointers are absolute file offsets. A sample never crosses a page boundary. The
allocation table is the last thing in the file. Source: ffcv 1.0.2, `ffcv/types.py` and `ffcv/fields/`.
"""

from __future__ import annotations

import json
import os
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from beton_tools.base.errors import UserError, require
from beton_tools.base.user_files import StrPath, open_user_file
from beton_tools.read.sample_table import ARRAY_TYPE, FLOAT_TYPE, IMAGE_TYPE, INT_TYPE, Field, SampleTable, image_field

VERSION = 2
MAX_CLASSES = 1 << 20  # a label beyond is not a class number (but a bounding box, an id or damage)
DEFAULT_PAGE_SIZE = 8 << 20  # what FFCV's writer uses: 8 MiB
JPEG_MODE, RAW_MODE = 0, 1
_ROWS = 1 << 18  # table rows that are checked at once, so that checking takes no memory for each sample
_PIECE = 64 << 20  # table bytes that are read at once
_IDENTIFYING = 4  # images whose bytes identify a file, together with its tables. Few, for many files on a network
# A JPEG spends at least one bit on each 8 x 8 block (512 pixels per byte). A file that claims more than twice as many
# pixels would make readers allocate gigabytes for nothing.
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

_COLUMN_DTYPES = {  # type id -> the field's dtype in a metadata row
    FLOAT_TYPE: np.dtype("<f8"),
    INT_TYPE: np.dtype("<i8"),
    IMAGE_TYPE: IMAGE_DTYPE,
    3: np.dtype([("ptr", "<u8"), ("size", "<u8")]),  # bytes
    ARRAY_TYPE: np.dtype("<u8"),
    5: np.dtype([("ptr", "<u8"), ("size", "<u8")]),  # json
    6: np.dtype("<u8"),  # torch tensor
}
_ONE_ALLOCATION = {FLOAT_TYPE, INT_TYPE, IMAGE_TYPE}  # among these fields, only the image has data in the pages


def metadata_dtype(type_ids: Sequence[int]) -> np.dtype:
    """Return the metadata table's row type: fields `f0`, `f1`, ... aligned as FFCV aligns them."""
    return np.dtype([("", _COLUMN_DTYPES[t]) for t in type_ids], align=True)


OUR_FIELDS = (("image", IMAGE_TYPE), ("label", INT_TYPE))  # fields in the files that this package writes
SET_FIELDS = (OUR_FIELDS[0], ("labels", ARRAY_TYPE))  # fields in multi-label files
SAMPLE_DTYPE = metadata_dtype([type_id for _, type_id in OUR_FIELDS])  # 24 bytes, for SET_FIELDS too: f1 is the pointer
ARRAY_ARGUMENTS = np.dtype([("shape", "<u8", 32), ("type_length", "<u8")])  # followed by the dtype as JSON
SET_DTYPES = ("|u1", "|b1", "<f4")  # array types that are read as label sets


# writing --------------------------------------------------------------------------------------------------------------


def align_up(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def first_page_offset(num_samples: int, page_size: int) -> int:
    """Return where the pages begin in one of our files, if its metadata table has `num_samples` rows."""
    tables = HEADER_DTYPE.itemsize + len(OUR_FIELDS) * FIELD_DTYPE.itemsize + num_samples * SAMPLE_DTYPE.itemsize
    return align_up(tables, page_size)


def write_tables(
    file: BinaryIO, samples: np.ndarray, sizes: np.ndarray, *, page_size: int, data_start: int, data_end: int,
    set_size: int = 0,
) -> int:  # fmt: skip
    """Write everything except the pages, which are the file's bytes [data_start, data_end).

    Args:
        samples: The metadata table, SAMPLE_DTYPE (N,).
        sizes: Bytes per image, integers (N,).
        set_size: How many classes a file with label sets has. There f1 points to the arrays. 0 means that f1 is a label.

    Returns:
        The file's size. The file ends with the allocation table.
    """
    header = np.array([(VERSION, len(OUR_FIELDS), page_size, len(samples), data_end)], HEADER_DTYPE)
    fields = np.zeros(len(OUR_FIELDS), FIELD_DTYPE)
    for row, (name, type_id) in zip(fields, SET_FIELDS if set_size else OUR_FIELDS, strict=True):
        row["type_id"] = type_id
        row["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
    table = np.zeros(len(samples), ALLOC_DTYPE)
    table["sample_id"] = np.arange(len(samples))
    table["ptr"], table["size"] = samples["f0"]["data_ptr"], sizes
    if set_size:
        described = json.dumps(np.dtype(np.uint8).descr).encode()
        arguments = np.array([([set_size] + [0] * 31, len(described))], ARRAY_ARGUMENTS).tobytes() + described
        fields[1]["arguments"][: len(arguments)] = np.frombuffer(arguments, np.uint8)
        arrays = table.copy()
        arrays["ptr"], arrays["size"] = samples["f1"], set_size
        table = np.concatenate([table, arrays])
    head = header.tobytes() + fields.tobytes() + samples.tobytes()
    file.seek(0)
    file.write(head.ljust(data_start, b"\0"))
    file.seek(data_end)
    file.write(table.tobytes())
    return data_end + table.nbytes


# reading --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Beton(SampleTable):
    """An open `.beton`.

    Images are read with `pread`, not through a memory map. If the file is truncated, or its disk fails, a read raises
    an error that names the file, where a memory map would end the process with SIGBUS.

    Attributes:
        data_start, data_end: Where the first page begins and the last one ends.
        descriptor: File descriptor, open as long as this object exists.
    """

    path: Path
    page_size: int
    data_start: int
    data_end: int
    file_size: int
    modified_ns: int
    descriptor: int

    def __post_init__(self) -> None:
        weakref.finalize(self, os.close, self.descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"descriptor": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the file in this process, without reading its tables. Raises UserError if it has changed."""
        with open_user_file(state["path"], "a .beton file") as file:
            self.__dict__.update(state, descriptor=os.dup(file.fileno()))
        self.__post_init__()
        self.check_unchanged()

    @classmethod
    def open(cls, path: StrPath) -> Beton:
        """Open and validate a file.

        Raises:
            UserError: The file is not a complete, consistent `.beton`, or cannot be read.
        """
        path = Path(path)
        with open_user_file(path, "a .beton file") as file:
            try:
                return _open(cls, path, file)
            except OSError as error:
                raise _unreadable(path, error) from error
            except MemoryError as error:
                raise UserError(f"{path}: its tables are larger than the memory") from error
            except ValueError as error:
                raise UserError(
                    f"{path}: not a complete .beton file ({error}). Write it again with `fastft convert`"
                ) from error

    @property
    def title(self) -> str:
        return str(self.path)

    @property
    def num_pages(self) -> int:
        return (self.data_end - self.data_start) // self.page_size

    def page_crc32(self, page: int) -> int:
        """Return a page's CRC-32. The last page may be shorter in files that other programs wrote."""
        start = self.data_start + page * self.page_size
        return zlib.crc32(self.read(start, min(self.page_size, self.data_end - start)).data)

    def image_bytes(self, sample_id: int) -> np.ndarray:
        self.check_id(sample_id)
        return self.read(int(self.pointers[sample_id]), int(self.sizes[sample_id]))

    def read(self, offset: int, num_bytes: int) -> np.ndarray:
        """Return the file's bytes [offset, offset + num_bytes), uint8.

        Raises:
            UserError: The file has become shorter since it was opened, or cannot be read.
        """
        out = np.empty(num_bytes, np.uint8)
        done = 0
        while done < num_bytes:
            try:
                count = os.preadv(self.descriptor, [out.data[done:]], offset + done)
            except OSError as error:
                raise _unreadable(self.path, error) from error
            if count == 0:
                raise self._changed(f"it ends at byte {offset + done:,} instead of {self.file_size:,}")
            done += count
        return out

    def with_tables(self, metadata: np.ndarray, sizes: np.ndarray, label_sets: np.ndarray | None) -> Beton:
        """Return the same file with its tables replaced by views into larger tables."""
        return replace(self, metadata=metadata, sizes=sizes, label_sets=label_sets, descriptor=os.dup(self.descriptor))

    def check_unchanged(self) -> None:
        """Raise UserError if the file was written to or truncated since it was opened."""
        status = os.fstat(self.descriptor)
        if status.st_size != self.file_size:
            raise self._changed(f"from {self.file_size:,} to {status.st_size:,} bytes")
        if status.st_mtime_ns != self.modified_ns:
            raise self._changed("modification time")

    def _changed(self, what: str) -> UserError:
        return UserError(
            f"{self.path}: changed while it was in use ({what}). Restore it, or write it again with `fastft convert`"
        )

    def identity(self) -> int:
        """Return a CRC-32 over the tables, the labels and some images' bytes.

        The tables hold every image's offset and size, so other JPEGs give another value. Equally large raw images have
        the same tables, whatever they show. Such files are told apart by the images that are read here, and by
        `beton_tools.read.manifest.read_checksum`.
        """
        labels = () if self.label_sets is None else (self.label_sets,)
        images = map(self.image_bytes, np.linspace(0, len(self) - 1, _IDENTIFYING, dtype=int).tolist())
        crc = zlib.crc32(self.metadata.view(np.uint8).data)
        for part in (self.sizes, *labels, *images):
            crc = zlib.crc32(part.data, crc)
        return crc

    def tables_crc32(self) -> int:
        """Return a CRC-32 over everything except the pages.

        It covers the header, field descriptors and metadata, then the allocation table.
        """
        crc = 0
        for begin, end in ((0, self.data_start), (self.data_end, self.file_size)):
            for offset in range(begin, end, _PIECE):
                crc = zlib.crc32(self.read(offset, min(_PIECE, end - offset)).data, crc)
        return crc


def _open(cls: type[Beton], path: Path, file: BufferedReader) -> Beton:
    status = os.fstat(file.fileno())
    header = _read_header(path, file, status.st_size)
    fields = _read_fields(path, file, int(header["num_fields"]), status.st_size)
    dtype = metadata_dtype([f.type_id for f in fields])
    start = HEADER_DTYPE.itemsize + len(fields) * FIELD_DTYPE.itemsize
    num_samples, page_size = int(header["num_samples"]), int(header["page_size"])
    data_end = int(header["alloc_table_ptr"])
    fits = num_samples > 0 and start + num_samples * dtype.itemsize <= data_end
    require(fits, f"the file is too small for the {num_samples} samples that its header states")
    metadata = _read_array(file, dtype, num_samples)
    metadata.flags.writeable = False
    num_allocated = (status.st_size - data_end) // ALLOC_DTYPE.itemsize
    has_others = not {f.type_id for f in fields} <= _ONE_ALLOCATION
    allocated = f"its header states {num_samples} samples, but {num_allocated} images are allocated"
    require(has_others or num_allocated == num_samples, allocated)
    image = metadata[image_field(fields).column]
    pointers = image["data_ptr"].view(np.int64)
    sizes = _read_sizes(file, data_end, num_allocated, image["data_ptr"])
    bad = _find_impossible(image, pointers, sizes, page_size, (start + metadata.nbytes, data_end))
    require(bad is None, f"sample {bad} points outside the file or has an impossible size")
    return cls(
        fields,
        metadata,
        sizes,
        label_sets=_read_label_sets(path, file, fields, metadata, (start + metadata.nbytes, data_end)),
        path=path,
        page_size=page_size,
        data_start=int(pointers.min()) // page_size * page_size,
        data_end=data_end,
        file_size=status.st_size,
        modified_ns=status.st_mtime_ns,
        descriptor=os.dup(file.fileno()),
    )


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read ({error.strerror or error})")


def _read_array(file: BufferedReader, dtype: np.dtype, count: int) -> np.ndarray:
    """Read `count` elements at the file's position."""
    out = np.empty(count, dtype)
    require(file.readinto(out.view(np.uint8).data) == out.nbytes, "it became shorter while it was being opened")
    return out


def _read_header(path: Path, file: BufferedReader, file_size: int) -> np.void:
    require(file_size >= HEADER_DTYPE.itemsize, f"{file_size} bytes are too few")
    header = _read_array(file, HEADER_DTYPE, 1)[0]
    if header["version"] != VERSION:
        what = f"its first bytes state version {header['version']}"
        raise UserError(f"{path}: not a .beton file of version {VERSION} ({what}). Write one with `fastft convert`")
    page_size, table = int(header["page_size"]), int(header["alloc_table_ptr"])
    require(page_size.bit_count() == 1, f"page size {page_size} is not a power of two")
    require(table > 0, "its writer was interrupted")  # FFCV's writer sets it last
    ends = table <= file_size and (file_size - table) % ALLOC_DTYPE.itemsize == 0
    require(ends, f"the allocation table at {table} does not end at the file's {file_size} bytes")
    return header


def _read_fields(path: Path, file: BufferedReader, count: int, file_size: int) -> tuple[Field, ...]:
    fits = count > 0 and HEADER_DTYPE.itemsize + count * FIELD_DTYPE.itemsize <= file_size
    require(fits, f"the header states {count} fields")
    fields = []
    for i, row in enumerate(_read_array(file, FIELD_DTYPE, count)):
        stored, type_id = row["name"].tobytes(), int(row["type_id"])
        # FFCV decodes all 16 bytes as ASCII, including those after the NUL
        require(stored.isascii(), f"the name of field {i} is not ASCII: {stored!r}")
        name = stored.split(b"\0")[0].decode("ascii")
        if type_id not in _COLUMN_DTYPES:
            raise UserError(f"{path}: field {name!r} has the custom type {type_id}, which cannot be read")
        fields.append(Field(name, type_id, f"f{i}", _array_of(row["arguments"]) if type_id == ARRAY_TYPE else None))
    names = [f.name for f in fields]
    if sum(f.type_id == IMAGE_TYPE for f in fields) != 1:
        raise UserError(f"{path}: needs exactly one RGB image field, but has {names}")
    require(len(set(names)) == len(names), f"two fields have the same name, in {names}")
    return tuple(fields)


def _array_of(arguments: np.ndarray) -> tuple[str, tuple[int, ...]] | None:
    """Return an array field's dtype and shape, as FFCV describes them, or None if they cannot be read."""
    data = arguments.tobytes()
    shape, length = np.frombuffer(data, ARRAY_ARGUMENTS, 1)[0].tolist()
    try:
        ((_, kind),) = json.loads(data[ARRAY_ARGUMENTS.itemsize :][:length])
        return str(kind), tuple(size for size in shape if size)
    except (ValueError, TypeError, RecursionError):
        return None


def _read_label_sets(
    path: Path, file: BufferedReader, fields: tuple[Field, ...], metadata: np.ndarray, limits: tuple[int, int]
) -> np.ndarray | None:
    """Read label sets, (N, K) uint8 or float32, from a file's only vector field.

    The result is None if there is no such field, or if the file has an int field.
    """
    vectors = [f for f in fields if f.array is not None and f.array[0] in SET_DTYPES and len(f.array[1]) == 1]
    if len(vectors) != 1 or any(f.type_id == INT_TYPE for f in fields):
        return None
    assert vectors[0].array is not None
    kind, (classes,) = vectors[0].array
    width, pointers = classes * np.dtype(kind).itemsize, metadata[vectors[0].column]
    low, high = limits
    is_outside = classes > MAX_CLASSES or ((pointers < low) | (pointers > high) | (width > high - pointers)).any()
    # overlapping arrays could take any amount of memory
    fits = not is_outside and width * len(pointers) <= high - low
    require(fits, f"labels lie outside the file or overlap, or have more than {MAX_CLASSES:,} classes")
    # arrays that lie one after another are read at once
    rows, order = np.empty((len(pointers), classes), kind), np.argsort(pointers, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(pointers[order]) != width) + 1):
        file.seek(int(pointers[part[0]]))
        rows[part] = _read_array(file, rows.dtype, len(part) * classes).reshape(-1, classes)
    if not ((rows >= 0) & (rows <= 1)).all():
        if vectors[0].name != SET_FIELDS[1][0]:
            return None  # landmarks, for example
        raise UserError(
            f"{path}: the field {vectors[0].name!r} has values other than 0 to 1, so it does not hold labels"
        )
    return rows.view(np.uint8) if kind == "|b1" else rows


def _read_sizes(file: BufferedReader, begin: int, num_allocated: int, image_ptr: np.ndarray) -> np.ndarray:
    """Return each sample's size, int64, from the allocation table that begins at `begin`.

    The table may be in any order, as FFCV's workers write it. Then it is held as a whole.
    """
    file.seek(begin)
    sizes = np.empty(len(image_ptr), np.int64)
    is_in_order = num_allocated == len(sizes)
    for first in range(0, len(sizes) if is_in_order else 0, _ROWS):
        own = slice(first, min(first + _ROWS, len(sizes)))
        table = _read_array(file, ALLOC_DTYPE, own.stop - first)
        if not np.array_equal(table["ptr"], image_ptr[own]):
            is_in_order = False
            break
        sizes[own] = table["size"]
    if is_in_order:
        return sizes
    file.seek(begin)
    table = _read_array(file, ALLOC_DTYPE, num_allocated)
    order = np.argsort(table["ptr"], kind="stable")
    positions = np.searchsorted(table["ptr"], image_ptr, sorter=order)
    rows = order[np.minimum(positions, len(table) - 1)] if len(table) else positions
    found = len(table) > 0 and np.array_equal(table["ptr"][rows], image_ptr)
    require(found, "an image is missing from the allocation table")
    sizes[:] = table["size"][rows]
    return sizes


def _find_impossible(
    image: np.ndarray, pointers: np.ndarray, sizes: np.ndarray, page_size: int, limits: tuple[int, int]
) -> int | None:
    """Return the first impossible sample, or None.

    A sample is impossible if it lies outside `limits`, does not fit a page, has no pixels, or does not have the bytes
    that its mode requires.
    """
    low, high = limits
    for first in range(0, len(sizes), _ROWS):
        rows = slice(first, first + _ROWS)
        start, size, mode = pointers[rows], sizes[rows], image["mode"][rows]
        # compared by subtraction: pointer + size could overflow int64 in a hostile file
        bad = (start < low) | (start > high) | (size <= 0) | (size > high - start) | (size > page_size)
        area = image["height"][rows].astype(np.int64) * image["width"][rows]
        bad |= (
            (area == 0)
            | (area // MAX_PIXELS_PER_BYTE > size)
            | (mode > RAW_MODE)
            | ((mode == RAW_MODE) & (size != area * 3))
        )
        if bad.any():
            return first + int(np.argmax(bad))
    return None
