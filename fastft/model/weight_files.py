"""Files and folders with weights. Nothing in a file is executed.

Files: OpenAI's TorchScript .pt, open_clip's .bin and .pt, safetensors. Folders, on disk or on the Hugging Face hub: as
written by open_clip, timm and transformers.
"""

import json
import mmap
import pickle
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr
from typing import Any, BinaryIO
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from beton_tools.base.errors import UserError, first_sentence
from beton_tools.base.user_files import check_user_file, expand_home, open_user_file, read_regular
from beton_tools.read.class_list import Classes
from fastft.model.timm_arch import NATIVE, pretrained_cfg
from fastft.model.torchscript import (
    HAS_BYTEARRAY,
    check_records,
    is_torchscript,
    is_zip,
    makes_bytearray,
    open_archive,
    read_torchscript,
)
from fastft.recipe.constants import TIMM
from fastft.recipe.hub import CONFIG, HUB, OPEN_CLIP_CONFIG, download

LEAST_TORCH = "2.6"
# the tensors' key in checkpoints from open_clip and timm, and from MAE and DeiT
WRAPPERS = ("state_dict", "model")
PREFIXES = ("module.", "model.", "_orig_mod.")  # wrappers that training scripts leave in names
DEPLOYED = (".onnx", ".pt2")
WEIGHTS = "OpenAI or open_clip weights (.pt, .bin or .safetensors)"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read all tensors in a weights file, by name, on the CPU.

    Raises UserError if the path is not a regular file, or if the file is unreadable, damaged or not a state dict.
    """
    if path.suffix in DEPLOYED:
        raise UserError(
            f"{path} is for deployment and holds no layers to train. Give the run that it was exported from, or its export to "
            "safetensors, timm or open_clip"
        )
    if path.suffix == ".safetensors":
        check_user_file(path, WEIGHTS)
    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        else:
            if torch.__version__ < LEAST_TORCH:
                raise UserError(
                    f"torch {torch.__version__} may run code from weights files (CVE-2025-32434). Install torch "
                    f"{LEAST_TORCH} or newer"
                )
            with open_user_file(path, WEIGHTS) as file:
                loaded = read_torchscript(file) if is_torchscript(file) else _read_pickle(file)
    except UserError:
        raise
    except pickle.UnpicklingError:  # torch's message advises you to run the code in the file
        raise UserError(
            f"weights file {path} cannot be read (damaged, or it holds more than tensors). Give {WEIGHTS}"
        ) from None
    except Exception as error:  # every library has its own errors. All mean that the weights file is unreadable
        raise UserError(f"weights file {path} cannot be read ({first_sentence(error)}). Give {WEIGHTS}") from None
    for wrapper in WRAPPERS:
        loaded = loaded.get(wrapper, loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, dict) or not loaded:
        raise UserError(f"weights file {path} does not hold a state dict. Give {WEIGHTS}")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"weights file {path} does not hold a state dict ({repr(name)} is not the name of a tensor). Give {WEIGHTS}"
            )
        if not _is_dense(value):
            raise UserError(f"weights file {path}: {name} is not a dense tensor. Use other weights")
    return loaded


def read_weights(source: "Path | WeightFolder") -> dict[str, Tensor]:
    """Read all tensors in a weights file or folder, without the prefixes that training scripts put before their names.

    Raises the same errors as `read_state_dict` and `WeightFolder.read`.
    """
    state = source.read() if isinstance(source, WeightFolder) else read_state_dict(source)
    for prefix in PREFIXES:
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _is_dense(value: Tensor) -> bool:
    """Return True for a plain array that takes no more memory when it is copied than its storage."""
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _read_pickle(file: BinaryIO) -> Any:
    """Read a `torch.save` file with only tensors and plain containers."""
    _check_memory(file)
    file.seek(0)
    with warnings.catch_warnings():
        # warnings about other programs' pickles and deprecated dtypes, which are refused
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)


def _check_memory(file: BinaryIO) -> None:
    """Check that no record is larger than the file says and that no pickle calls `bytearray` with an arbitrary size.

    Raises the same errors as `open_archive` and `check_records` for a zip file, and also if a pickle makes such a call.
    """
    size, calls_bytearray = file.seek(0, 2), False
    if is_zip(file):
        with open_archive(file) as archive:
            check_records(archive.infolist(), size)
            pickles = [name for name in archive.namelist() if name.lower().endswith("data.pkl")]
            calls_bytearray = any(makes_bytearray(archive.read(name)) for name in pickles)
    elif size:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            calls_bytearray = makes_bytearray(data)
    if calls_bytearray:
        raise ValueError(HAS_BYTEARRAY)


def is_torchscript_file(path: Path) -> bool:
    """Return True if a file is TorchScript that `read_state_dict` can read."""
    if path.suffix == ".safetensors" or not path.is_file():
        return False
    with open_user_file(path, WEIGHTS) as file, suppress(ValueError, BadZipFile):
        return is_torchscript(file)
    return False


MAX_HUB_CONFIG_BYTES = 8 << 20  # large, because configurations hold label names
CLASSES, CLASS_IDS = "classes", "class_ids"  # keys in fastft's exports and checkpoints
OPEN_CLIP_HEAD = "head.safetensors"  # in fastft's exports
INDEX = "model.safetensors.index.json"  # transformers' list of the files that hold the tensors
# the first that exists is read
WEIGHT_FILES = {
    "open_clip": (
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.bin",
        "model.safetensors",
        "pytorch_model.bin",
    ),
    "timm": ("model.safetensors", "pytorch_model.bin"),
    "transformers": ("model.safetensors", INDEX, "pytorch_model.bin"),
}
WEIGHT_FOLDER = f"a folder with {OPEN_CLIP_CONFIG} (open_clip), or with a {CONFIG} from timm or transformers' CLIP"
CLIP_TYPES = ("clip", "clip_vision_model")  # transformers' model_type


@dataclass(frozen=True)
class WeightFolder:
    """A folder with weights.

    Attributes:
        library: the library that wrote it, 'open_clip', 'timm' or 'transformers'.
        timm_name: the timm model that the weights belong to. None for open_clip's own ViT.
        quick_gelu: whether the tower was trained with QuickGELU.
        heads: attention heads, if stated. For timm's models `clip_numbers` tells more.
        classes: the head's classes by output, if stated, as in fastft's exports.
        averages: whether the head in such an export reads the mean of normalised patch tokens (`model.pool=patches`).
    """

    path: Path
    library: str
    timm_name: str | None = None
    quick_gelu: bool = False
    heads: int | None = None
    classes: tuple[str, ...] | None = None
    averages: bool = False

    def read(self) -> dict[str, Tensor]:
        """Read all tensors under the library's names. Raises UserError if a weights file is missing or unreadable."""
        for name in WEIGHT_FILES[self.library]:
            if (self.path / name).exists():
                files = _indexed_files(self.path) if name == INDEX else [name]
                if self.library == "open_clip" and (self.path / OPEN_CLIP_HEAD).exists():
                    files.append(OPEN_CLIP_HEAD)
                return {key: value for file in files for key, value in read_state_dict(self.path / file).items()}
        raise UserError(f"{self.path} holds no weights. Expected {' or '.join(WEIGHT_FILES[self.library])}")


def _indexed_files(folder: Path) -> list[str]:
    files = _part(_read_config(folder / INDEX), "weight_map")
    names = list(dict.fromkeys(map(str, files.values())))
    if not names or not all(Path(name).name == name for name in names):
        raise UserError(f"{folder / INDEX} names no files beside it. Download the folder again")
    return names


def find_weight_folder(weights: str) -> WeightFolder | None:
    """Return the folder that `model.weights` names, after a download for 'hf-hub:ORG/NAME' and 'timm/NAME'.

    Returns None for anything else. Raises UserError if the hub cannot be reached or lacks the repository, if timm does
    not have the name, or if it is another kind of folder.
    """
    if weights.startswith(HUB):
        return fetch(weights.removeprefix(HUB))
    if weights.startswith(TIMM):
        config = pretrained_cfg(weights.removeprefix(TIMM), "model.weights")
        if not config.hf_hub_id:
            raise UserError(f"{weights} is not on the hub. Download {config.url} and set model.weights to the file")
        return fetch(config.hf_hub_id, weights.removeprefix(TIMM))
    path = expand_home(weights)
    return open_weight_folder(path) if path.is_dir() else None


def open_weight_folder(path: Path) -> WeightFolder:
    """Open a folder with weights. Raises UserError if it has no configuration from the three libraries."""
    if (path / OPEN_CLIP_CONFIG).exists():
        config = _read_config(path / OPEN_CLIP_CONFIG)
        model = _part(config, "model_cfg") or config
        vision, classes = _part(model, "vision_cfg"), class_list(config.get(CLASSES))
        name, averages = vision.get("timm_model_name"), vision.get("pool_type") == "avg"
        return WeightFolder(
            path,
            "open_clip",
            str(name) if name else None,
            bool(model.get("quick_gelu")),
            classes=classes,
            averages=averages,
        )
    config = _read_config(path / CONFIG) if (path / CONFIG).exists() else {}
    if config.get("model_type") in CLIP_TYPES:
        vision = _part(config, "vision_config") or config
        quick_gelu, heads = vision.get("hidden_act", "quick_gelu") == "quick_gelu", vision.get("num_attention_heads")
        return WeightFolder(path, "transformers", None, quick_gelu, heads if isinstance(heads, int) else None)
    if isinstance(config.get("architecture"), str):
        notes = str(_part(config, "pretrained_cfg").get("notes"))
        arguments = _part(config, "model_args")
        heads, averages = arguments.get("num_heads"), arguments.get("global_pool") == "avg"
        return WeightFolder(
            path, "timm", config["architecture"], NATIVE in notes, heads if isinstance(heads, int) else None,
            class_list(config.get("label_names")), averages and bool(arguments.get("final_norm")),
        )  # fmt: skip
    raise UserError(f"{path} is not {WEIGHT_FOLDER}. Give such a folder or a weights file")


def stored_classes(path: Path) -> Classes | None:
    """Return the classes that a fastft .safetensors file states.

    An export states them in its header, a checkpoint in the state beside it.
    """
    if path.suffix != ".safetensors":
        return None
    with suppress(OSError, SafetensorError, ValueError, RecursionError):
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        if CLASSES in header:
            return _as_classes(json.loads(header[CLASSES]), json.loads(header.get(CLASS_IDS, "null")))
        if (state := path.with_name("state.json")).is_file():
            stored = _read_config(state)
            return _as_classes(stored.get(CLASSES), stored.get(CLASS_IDS))
    return None


def _as_classes(names: Any, ids: Any) -> Classes | None:
    known, own = class_list(names), class_list(ids)
    if known is None:
        return None
    return Classes.of_labels(known, own if own is not None and len(own) == len(known) else None)


def class_list(value: Any) -> tuple[str, ...] | None:
    """Return class names as configurations state them, or None."""
    named = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return tuple(value) if named else None


def _part(config: dict[str, Any], key: str) -> dict[str, Any]:
    part = config.get(key)
    return part if isinstance(part, dict) else {}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_regular(path, MAX_HUB_CONFIG_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({first_sentence(error)}). Download it again") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} must be a JSON object. Download it again")
    return config


def fetch(repository: str, timm_name: str | None = None) -> WeightFolder:
    """Return the local folder for a hub repository 'ORG/NAME' or 'ORG/NAME@REVISION'.

    It holds the configuration and the weights. timm_name: the model whose weights timm has there. They are read no
    matter what other libraries have there too. Only the files that `WeightFolder` reads are downloaded, to the hub's
    cache. Without a network the cached files are used. Raises UserError if the repository is neither reachable nor in
    the cache, or is not in one of the three formats.
    """
    name, _, revision = repository.partition("@")
    if timm_name is None:
        configs = [config for file in (OPEN_CLIP_CONFIG, CONFIG) if (config := download(name, revision, file))]
        if not configs:
            raise UserError(f"{HUB}{repository} is not {WEIGHT_FOLDER}. Use another repository")
        folder = open_weight_folder(configs[0].parent)
    else:
        folder = WeightFolder(Path(), "timm", timm_name)
    for file in WEIGHT_FILES[folder.library]:
        if (local := download(name, revision, file)) is None:
            continue
        if file == INDEX:
            for part in _indexed_files(local.parent):
                download(name, revision, part)
        return replace(folder, path=local.parent)
    raise UserError(f"{HUB}{repository} holds no {' or '.join(WEIGHT_FILES[folder.library])}. Use another repository")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> None:
    """Write tensors from any device to a file with the permissions of other new files.

    safetensors itself would let only the owner read the file. header: text by key. Raises OSError if the file cannot be
    written. This includes a full disk, for which safetensors has its own error.
    """
    path.touch()
    permissions = path.stat().st_mode & 0o777
    try:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, dict(header or {})
        )
        _sort_header(path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(permissions)


def _sort_header(path: Path) -> None:
    """Sort the texts in a file's header by key, because safetensors orders them differently in each process."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        names = json.loads(file.read(size))
        texts = {key: dict(sorted(value.items())) for key, value in names.items() if key == "__metadata__"}
        file.seek(8)
        file.write(json.dumps(names | texts, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))
