"""Tensors of a TorchScript archive, such as OpenAI's CLIP files, without running anything that it holds.

`torch.jit.load` compiles and calls the archive's `__setstate__`. Here its code is not read. The archive is a zip file with
one raw record per storage (`data/0`, ...) and a pickle of the module (`data.pkl`), which torch's restricted unpickler reads:
classes that are defined in the archive's code become `_Module`.
"""

import pickletools
import zipfile
from collections.abc import Sequence
from typing import Any, BinaryIO
from unittest import mock

import torch
from torch import Tensor

MAX_PICKLE_BYTES = 64 << 20  # names and shapes only: 0.2 MB for OpenAI's largest model
MAX_NAMES = 1 << 20  # characters of all names: 30,000 in OpenAI's largest model


def is_zip(file: BinaryIO) -> bool:
    """True if torch reads the file as a zip archive: it looks at the first four bytes."""
    file.seek(0)
    return file.read(4) == b"PK\x03\x04"


def is_torchscript(file: BinaryIO) -> bool:
    """True for a zip file with a record `constants.pkl`, which `torch.save` does not write. Raises BadZipFile: damaged."""
    if not is_zip(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.lower().endswith("/constants.pkl") for name in archive.namelist())


class _Module:
    """An object whose class is defined in the archive's code; objects may share one dict of attributes."""

    attributes: Any = None

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


def read_torchscript(file: BinaryIO) -> dict[str, Tensor]:
    """Tensor attributes of the archive's modules by their dotted names, as `state_dict` of the loaded module has them.

    Raises:
        ValueError, RuntimeError, pickle.UnpicklingError: not an archive of plain tensors, lists, dicts and objects, or records
            that do not fit together.
        zipfile.BadZipFile: damaged.
    """
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        root = next(n for n in archive.namelist() if n.lower().endswith("/constants.pkl")).partition("/")[0]
        pickled = f"{root}/data.pkl"
        used = [r for r in archive.infolist() if r.filename.startswith((pickled, f"{root}/data/"))]
        check_records(used, size)  # the records of its code are compressed
        if pickled not in archive.namelist() or archive.getinfo(pickled).file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"no record data.pkl of at most {MAX_PICKLE_BYTES:,} bytes")
        operations = list(pickletools.genops(archive.read(pickled)))
    globals_ = {
        str(name).replace(" ", ".") for operation, name, _ in operations if operation.name == "GLOBAL"
    }
    classes: list[Any] = [(_Module, name) for name in globals_ if name.startswith("__torch__.")]
    tags: list[Any] = [(_first, name) for name in globals_ if name.startswith("torch.jit._pickle.")]
    file.seek(0)
    # torch refuses to read TorchScript with its restricted unpickler, because it would run the code
    not_torchscript = mock.patch("torch.serialization._is_torchscript_zip", return_value=False)
    with not_torchscript, torch.serialization.safe_globals([*classes, *tags]):
        return _named_tensors(torch.load(file, map_location="cpu", weights_only=True))


def _first(value: Any, *_: Any) -> Any:
    """Type tags of lists and dicts are dropped."""
    return value


def check_records(records: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Check that records of a zip file of `size` bytes are stored uncompressed, as PyTorch writes tensors.

    Compressed or overlapping records could be many times larger than the file. Raises ValueError: they are not.
    """
    stored = all(r.compress_type == zipfile.ZIP_STORED and r.file_size == r.compress_size for r in records)
    if not stored or sum(record.file_size for record in records) > size:
        raise ValueError("its records are compressed or overlap")


def _named_tensors(module: Any) -> dict[str, Tensor]:
    """Tensors of a tree of objects; an object that is in it twice is named once.

    Raises ValueError: the names are too long: nested objects could have names of many times the file's size.
    """
    found: dict[str, Tensor] = {}
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
            characters += len(whole := f"{prefix}{name}")
            if characters > MAX_NAMES:
                raise ValueError(f"names of more than {MAX_NAMES:,} characters")
            if isinstance(value, Tensor):
                found[whole] = value
            pending.append((f"{whole}.", value))
    return found
