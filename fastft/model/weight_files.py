"""State dicts from files: OpenAI's TorchScript .pt, open_clip's .bin and .pt, safetensors. Nothing in a file is executed."""

import mmap
import pickle
import zipfile
from pathlib import Path
from reprlib import repr
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor

from beton_tools.base.errors import UserError
from beton_tools.base.user_files import check_user_file, open_user_file
from fastft.model.torchscript import check_records, is_torchscript, read_torchscript

# the key of the tensors in checkpoints of open_clip and timm, and of MAE and DeiT
WRAPPERS = (
    "state_dict",
    "model",
)
BYTEARRAY = b"bytearray\n"  # as a pickle names a global
EXPECTED = "OpenAI or open_clip weights (.pt, .bin or .safetensors)"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """All tensors of a weights file by name, on the CPU.

    Raises:
        UserError: not a regular file, not readable, damaged, or not a state dict.
    """
    if path.suffix == ".safetensors":
        check_user_file(path, EXPECTED)
    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        else:
            with open_user_file(path, EXPECTED) as file:
                loaded = read_torchscript(file) if is_torchscript(file) else _read_pickle(file)
    except UserError:
        raise
    except pickle.UnpicklingError:  # its message advises to run the code in the file
        raise UserError(
            f"weights file {path} cannot be read (damaged, or it holds more than tensors); give {EXPECTED}"
        ) from None
    except Exception as error:  # each library has its own; all mean: not a readable weights file
        raise UserError(
            f"weights file {path} cannot be read ({first_sentence(error)}); give {EXPECTED}"
        ) from None
    for wrapper in WRAPPERS:
        loaded = loaded.get(wrapper, loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, dict) or not loaded:
        raise UserError(f"weights file {path} does not hold a state dict; give {EXPECTED}")
    odd = [
        name for name, value in loaded.items() if not isinstance(name, str) or not isinstance(value, Tensor)
    ]
    if odd:
        raise UserError(
            f"weights file {path} does not hold a state dict ({repr(odd[0])} is not the name of a tensor); give {EXPECTED}"
        )
    return loaded


def _read_pickle(file: BinaryIO) -> Any:
    """A file of `torch.save`, tensors and plain containers only."""
    _check_memory(file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def _check_memory(file: BinaryIO) -> None:
    """Check that no record is larger than the file says, and that no pickle calls `bytearray` with any number as its size.

    Raises:
        ValueError: as `check_records` for a zip file, or a pickle does.
    """
    size, found = file.seek(0, 2), False
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            check_records(archive.infolist(), size)
            found = any(BYTEARRAY in archive.read(n) for n in archive.namelist() if n.endswith("data.pkl"))
    elif size:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = data.find(BYTEARRAY) >= 0
    if found:
        raise ValueError(
            "it holds a bytearray, which could take any amount of memory: save only the state dict"
        )


def is_torchscript_file(path: Path) -> bool:
    if path.suffix == ".safetensors" or not path.is_file():
        return False
    with open_user_file(path, EXPECTED) as file:
        return is_torchscript(file)


def first_sentence(error: BaseException) -> str:
    """The first sentence of an error's message, or its type where it has none."""
    line = (str(error).splitlines() or [""])[0]
    return line.partition(". ")[0].rstrip(".") or type(error).__name__
