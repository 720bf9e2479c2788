"""Read tensors from a TorchScript archive, such as OpenAI's CLIP files, without running anything in it.

`torch.jit.load` compiles and calls the archive's `__setstate__`. Here its code is not read. The archive is a zip file
with one raw record per storage (`data/0`, ...) and a pickle of the module (`data.pkl`). torch's restricted unpickler
reads the pickle, and classes defined in the archive's code become `_Module`.
"""

import mmap
import pickletools
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO
from unittest import mock

import torch
from torch import Tensor

MAX_PICKLE_BYTES = 64 << 20  # the pickle has only names and shapes: 0.2 MB for OpenAI's largest model
HAS_BYTEARRAY = "it holds a bytearray, which could fill the memory. Save only the state dict"
MAX_NAMES = 1 << 20  # characters in all names together: 30,000 in OpenAI's largest model
# sizes of the three records at a zip file's end (APPNOTE.TXT, 4.3.14 to 4.3.16). Only the last is always there
END_64_BYTES, LOCATOR_BYTES, END_BYTES = 56, 20, 22


def is_zip(file: BinaryIO) -> bool:
    """Return True if torch reads the file as a zip archive. torch decides this by the first four bytes."""
    file.seek(0)
    return file.read(4) == b"PK\x03\x04"


@contextmanager
def open_archive(file: BinaryIO) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive in which Python and torch find the same records.

    Python looks for the directory just before the record at the file's end, while torch looks where that record says it
    is. If two records have one name, Python takes the last. torch ignores case.

    Raises:
        ValueError: the file does not end with its directory and the records that say where it is, or a name occurs
            twice.
        zipfile.BadZipFile: the file is damaged.
    """
    end = file.seek(0, 2) - END_BYTES
    file.seek(max(0, end - END_64_BYTES - LOCATOR_BYTES))
    tail = file.read()
    if len(tail) < END_64_BYTES + LOCATOR_BYTES + END_BYTES:  # too short for an archive with a record
        raise zipfile.BadZipFile("its zip archive is damaged")
    end_64, locator, record = tail[:END_64_BYTES], tail[END_64_BYTES:-END_BYTES], tail[-END_BYTES:]
    length, start, comment = struct.unpack_from("<LLH", record, 12)
    whole = record.startswith(b"PK\5\6") and comment == 0
    if locator.startswith(b"PK\6\7"):
        end -= END_64_BYTES + LOCATOR_BYTES
        (length, start), (at,) = struct.unpack_from("<QQ", end_64, 40), struct.unpack_from("<Q", locator, 8)
        whole = whole and end_64.startswith(b"PK\6\6") and at == end
    if not whole or start + length != end:
        raise ValueError("its zip archive does not end with its directory")
    with zipfile.ZipFile(file) as archive:
        if len({name.lower() for name in archive.namelist()}) < len(archive.namelist()):
            raise ValueError("its zip archive has two records with the same name")
        yield archive


def is_torchscript(file: BinaryIO) -> bool:
    """Return True for a zip file with the record `constants.pkl`, which `torch.save` never writes.

    Raises the same errors as `open_archive`.
    """
    if not is_zip(file):
        return False
    with open_archive(file) as archive:
        return any(name.lower().endswith("/constants.pkl") for name in archive.namelist())


class _Module:
    """An object whose class is defined in the archive's code. Several objects may share one attribute dict."""

    attributes: Any = None

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


def read_torchscript(file: BinaryIO) -> dict[str, Tensor]:
    """Return the tensor attributes of the archive's modules by dotted name, like the loaded module's `state_dict`.

    Raises:
        ValueError, RuntimeError, pickle.UnpicklingError: this is not an archive with only plain tensors, lists, dicts
            and objects, or its records do not fit together.
        zipfile.BadZipFile: the file is damaged.
    """
    size = file.seek(0, 2)
    with open_archive(file) as archive:
        root = next(n for n in archive.namelist() if n.lower().endswith("/constants.pkl")).partition("/")[0]
        if not all(name.startswith(f"{root}/") for name in archive.namelist()):  # torch takes the first record's folder
            raise ValueError("its zip archive has records in several folders")
        pickled = f"{root}/data.pkl"
        # the code's records are compressed, but they are not read
        check_records([r for r in archive.infolist() if not r.filename.startswith(f"{root}/code/")], size)
        if pickled not in archive.namelist() or archive.getinfo(pickled).file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"no record data.pkl of at most {MAX_PICKLE_BYTES:,} bytes")
        if makes_bytearray(data := archive.read(pickled)):
            raise ValueError(HAS_BYTEARRAY)
    globals_ = {
        str(name).replace(" ", ".") for operation, name, _ in pickletools.genops(data) if operation.name == "GLOBAL"
    }
    classes: list[Any] = [(_Module, name) for name in globals_ if name.startswith("__torch__.")]
    tags: list[Any] = [(_first, name) for name in globals_ if name.startswith("torch.jit._pickle.")]
    file.seek(0)
    # torch does not read TorchScript with its restricted unpickler, because it would run the code
    not_torchscript = mock.patch("torch.serialization._is_torchscript_zip", return_value=False)
    with not_torchscript, torch.serialization.safe_globals([*classes, *tags]):
        return _named_tensors(torch.load(file, map_location="cpu", weights_only=True))


def makes_bytearray(pickled: bytes | mmap.mmap) -> bool:
    """Return True if a pickle names `bytearray`, which torch's restricted unpickler calls with any number as size."""
    return pickled.find(b"bytearray\n") >= 0


def _first(value: Any, *_: Any) -> Any:
    """Return the first argument, which drops type tags from lists and dicts."""
    return value


def check_records(records: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Check that records in a zip file with `size` bytes are stored uncompressed, as PyTorch writes tensors.

    Compressed or overlapping records could be many times larger than the file. Raises ValueError if there are any.
    """
    stored = all(r.compress_type == zipfile.ZIP_STORED and r.file_size == r.compress_size for r in records)
    if not stored or sum(record.file_size for record in records) > size:
        raise ValueError("its records are compressed or overlap")


def _named_tensors(module: Any) -> dict[str, Tensor]:
    """Return the tensors in an object tree. An object that occurs twice in the tree is named once.

    Raises ValueError if the names are too long. Nested objects' names could take many times the file's size.
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    characters = 0
    pending: list[tuple[str, Any]] = [("", module)]
    while pending:
        prefix, node = pending.pop()
        attributes = node.attributes if isinstance(node, _Module) else None
        if not isinstance(attributes, dict) or id(attributes) in seen:
            continue
        seen.add(id(attributes))
        for name, value in attributes.items():
            if not isinstance(name, str):  # because a nested tuple would become a long name
                raise ValueError("an attribute's name is not a string")
            characters += len(whole := f"{prefix}{name}")
            if characters > MAX_NAMES:
                raise ValueError(f"names of more than {MAX_NAMES:,} characters")
            if isinstance(value, Tensor):
                tensors[whole] = value
            pending.append((f"{whole}.", value))
    return tensors
