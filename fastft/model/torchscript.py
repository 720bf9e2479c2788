"""Tensors of a TorchScript archive, such as OpenAI's CLIP files, without running anything that it holds.

`torch.jit.load` compiles and calls the archive's `__setstate__`. Here its code is not read. The archive is a zip file with
one raw record per storage (`data/0`, ...) and a pickle of the module (`data.pkl`), whose few opcodes are interpreted:
a global is only a name, objects become dicts of attributes, and a call is one of the fixed cases of `_rebuild`.
"""

import math
import pickletools
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch
from torch import Tensor

MAX_PICKLE_BYTES = 64 << 20  # names and shapes only: 0.2 MB for OpenAI's largest model
MAX_NAMES = 1 << 20  # characters of all names: 30,000 in OpenAI's largest model
STORAGES = {
    "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16, "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64, "BoolStorage": torch.bool, "ByteStorage": torch.uint8, "CharStorage": torch.int8,
    "ShortStorage": torch.int16, "IntStorage": torch.int32, "LongStorage": torch.int64,
}  # fmt: skip


def is_zip(file: BinaryIO) -> bool:
    """True if torch reads the file as a zip archive: it looks at the first four bytes."""
    file.seek(0)
    return file.read(4) == b"PK\x03\x04"


def is_torchscript(file: BinaryIO) -> bool:
    """True if it is a TorchScript archive: a zip file with a record `constants.pkl`, which `torch.save` does not write.

    Raises:
        zipfile.BadZipFile: damaged.
    """
    if not is_zip(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.lower().endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(file: BinaryIO) -> dict[str, Tensor]:
    """Tensor attributes of the archive's modules by their dotted names, as `state_dict` of the loaded module has them.

    Raises:
        ValueError: not an archive of plain tensors, lists, dicts and objects, or records that do not fit together.
        zipfile.BadZipFile: damaged.
    """
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        root = next(n for n in archive.namelist() if n.lower().endswith("/constants.pkl")).partition("/")[0]
        pickled, byte_order = f"{root}/data.pkl", f"{root}/byteorder"
        used = [
            r for r in archive.infolist() if r.filename.startswith((pickled, byte_order, f"{root}/data/"))
        ]
        check_records(used, size)  # the records of its code are compressed
        if pickled not in archive.namelist() or archive.getinfo(pickled).file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"no record data.pkl of at most {MAX_PICKLE_BYTES:,} bytes")
        if byte_order in archive.namelist() and archive.read(byte_order) != b"little":
            raise ValueError("written on a big-endian machine")
        storages = _Storages(archive, f"{root}/data")
        return _named_tensors(_Interpreter(storages.read).run(archive.read(pickled)))


def check_records(records: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Check that records of a zip file of `size` bytes are stored uncompressed, as PyTorch writes tensors.

    Compressed or overlapping records could be many times larger than the file.

    Raises:
        ValueError: they are not.
    """
    stored = all(r.compress_type == zipfile.ZIP_STORED and r.file_size == r.compress_size for r in records)
    if not stored or sum(record.file_size for record in records) > size:
        raise ValueError("its records are compressed or overlap")


class _Storages:
    """The records of an archive as one-dimensional tensors, each read once."""

    def __init__(self, archive: zipfile.ZipFile, folder: str):
        self.archive, self.folder = archive, folder
        self._read: dict[str, Tensor] = {}

    def read(self, reference: Any) -> Tensor:
        """reference: ('storage', type, record, device, elements), as the pickle refers to a storage."""
        kind, storage, record, _, elements = reference
        named = kind == "storage" and isinstance(record, str) and isinstance(storage, _Global)
        if not named or storage.module != "torch" or storage.name not in STORAGES:
            raise ValueError("its pickle refers to something else than a storage of numbers")
        dtype = STORAGES[storage.name]
        if record not in self._read:
            data = bytearray(self.archive.read(f"{self.folder}/{record}"))
            self._read[record] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        values = self._read[record]
        if values.dtype != dtype or values.numel() != elements:
            raise ValueError(f"record {record[:40]!r} does not hold the numbers that its pickle describes")
        return values


# the pickle -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Global:
    """The name of a class or function, which is never imported."""

    module: str
    name: str


@dataclass
class _Object:
    """An object whose class is defined in the archive's code; objects may share one dict of attributes."""

    attributes: dict[str, Any] = field(default_factory=dict)


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict,
}  # fmt: skip
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE")


class _Interpreter:
    """Interprets the opcodes that TorchScript's pickler writes (torch/csrc/jit/serialization/pickler.cpp)."""

    def __init__(self, read_storage: Callable[[Any], Tensor]):
        self.read_storage = read_storage
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """The object that the pickle describes.

        Raises:
            ValueError: damaged, or it holds or does something that TorchScript's pickler does not write.
        """
        try:
            for opcode, argument, _ in pickletools.genops(data):
                if opcode.name in _CONSTANTS:
                    self.stack.append(_CONSTANTS[opcode.name]())
                elif opcode.name in _VALUES:
                    self.stack.append(argument)
                else:
                    self._apply(opcode.name, argument)
            return self.stack.pop()
        except (AttributeError, LookupError, RuntimeError, TypeError) as error:
            raise ValueError("its pickle is damaged") from error

    def _apply(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        match opcode:
            case "PROTO" | "STOP":
                pass
            case "MARK":
                self.marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "TUPLE":
                stack.append(tuple(self._pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if opcode == "APPEND" else self._pop_to_mark()
                self._top(list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = [stack.pop(-2), stack.pop()] if opcode == "SETITEM" else self._pop_to_mark()
                if any(
                    type(key) not in (str, int) for key in items[::2]
                ):  # hashing others could take for ever
                    raise ValueError("its pickle has a dict whose keys are neither texts nor numbers")
                self._top(dict).update(zip(items[::2], items[1::2], strict=True))
            case "GLOBAL":
                stack.append(_Global(*argument.split(" ", 1)))
            case "NEWOBJ":
                cls, arguments = stack[-2:]
                if not isinstance(cls, _Global) or not cls.module.startswith("__torch__") or arguments != ():
                    raise ValueError(f"its pickle makes an object of {_shown(cls)}")
                stack[-2:] = [_Object()]
            case "BUILD":
                state = stack.pop()
                self._top(_Object).attributes = state if isinstance(state, dict) else {}
            case "REDUCE":
                stack[-2:] = [_rebuild(*stack[-2:])]
            case "BINPERSID":
                stack.append(self.read_storage(stack.pop()))
            case _:
                raise ValueError(f"its pickle has the operation {opcode}, which TorchScript does not write")

    def _pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"its pickle uses a {type(self.stack[-1]).__name__} as a {kind.__name__}")
        return self.stack[-1]


def _rebuild(function: Any, arguments: Any) -> Any:
    """The value of a call that TorchScript's pickler writes."""
    match function:
        case _Global("torch._utils", "_rebuild_tensor_v2"):
            storage, offset, size, stride, *_ = arguments
            return _strided(storage, offset, size, stride)
        case _Global("collections", "OrderedDict"):  # a tensor's hooks
            return {}
        # type tags of lists and dicts; a device's name
        case _Global("torch.jit._pickle") | _Global("torch", "device"):
            return arguments[0]
    raise ValueError(f"its pickle calls {_shown(function)}")


def _shown(value: Any) -> str:
    """Names for an error message; other values may be endless."""
    return f"{value.module}.{value.name}"[:80] if isinstance(value, _Global) else f"a {type(value).__name__}"


def _strided(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """A view of the storage; refuses one with more elements than the storage has."""
    numbers = (offset, *size, *stride)
    if any(type(n) is not int or n < 0 for n in numbers) or math.prod(size) > storage.numel():
        raise ValueError("a tensor is not within its storage")
    return storage.as_strided(size, stride, offset)


def _named_tensors(module: Any) -> dict[str, Tensor]:
    """Tensors of a tree of objects; an object that is in it twice is named once.

    Raises:
        ValueError: the names are too long: nested objects could have names of many times the file's size.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    characters = 0
    pending: list[tuple[str, Any]] = [("", module)]
    while pending:
        prefix, node = pending.pop()
        if not isinstance(node, _Object) or id(node.attributes) in seen:
            continue
        seen.add(id(node.attributes))
        for name, value in node.attributes.items():
            characters += len(whole := f"{prefix}{name}")
            if characters > MAX_NAMES:
                raise ValueError(f"names of more than {MAX_NAMES:,} characters")
            if isinstance(value, Tensor):
                found[whole] = value
            pending.append((f"{whole}.", value))
    return found
