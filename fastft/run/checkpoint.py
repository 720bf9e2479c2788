"""Checkpoint folders: complete under their name or absent, checked when they are read, and never unpickled.

A checkpoint holds `model.safetensors`, `ema.safetensors`, `optimizer.safetensors` (moments by parameter name), `state.json`
(recipe, position, scaler, evaluations, class names) and `checksums.json` (CRC-32 of the other files). It is written under
a temporary name, flushed to disk, then renamed.
"""

import json
import re
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from beton_tools.base.atomic import sync
from beton_tools.base.errors import CORRECT, UserError, report_disk_errors
from beton_tools.base.typed_json import UNSET, Count, Document, Number, Numbers, Object, Unset, check, check_version
from beton_tools.base.user_files import open_regular, read_regular
from fastft.model import Arch, TimmArch
from fastft.model.weight_files import save_tensors
from fastft.recipe import Recipe, recipe_from_dict
from fastft.run.evaluations import StoredEvaluation

VERSION = 1
PARTIAL = ".partial-"
STATE, CHECKSUMS = "state.json", "checksums.json"
MAX_JSON_BYTES = 256 << 20
READ_BYTES = 1 << 20

Forms = dict[str, tuple[torch.Size, torch.dtype]]

# the part of state.json that every checkpoint has
MODEL_STATE = ("recipe", "name", "arch", "classes", "data", "class_counts")
SCALER_KEYS = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}


class _Logged(Document):
    steps: Count
    loss_sum: Number
    seconds: Number
    waited: Number
    split: Numbers


class _StepChoice(Document):
    mode: str
    attention: str
    device: str


class _Progress(Document):
    epoch: Count
    step: Count
    seconds: Number
    evaluations: list[StoredEvaluation]
    logged: _Logged | None = None
    step_choice: _StepChoice | None = None


class _State(Document):
    recipe: dict[str, Object]
    name: str
    arch: Object
    classes: list[str]
    data: Object
    class_counts: list[Count]
    progress: _Progress | Unset = UNSET
    scaler: Numbers | Unset = UNSET
    evaluation: StoredEvaluation | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint folder; `tensors` by file stem: model, ema, optimizer."""

    path: Path
    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


class Damaged(UserError):
    """A checkpoint whose files are incomplete or contradict each other; an older one can be used."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"checkpoint {path} is damaged ({reason}); use an older one")


# writing --------------------------------------------------------------------------------------------------------------


def write_checkpoint(path: Path, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write the folder `path`; an interrupted write leaves only a `.partial-` folder, which later writes remove.

    Raises UserError: the disk is full or fails.
    """
    partial = path.parent / f"{PARTIAL}{path.name}"
    shutil.rmtree(partial, ignore_errors=True)
    with report_disk_errors(f"checkpoint {path}", CORRECT):
        try:
            partial.mkdir(parents=True)
            for name, group in tensors.items():
                save_tensors(partial / f"{name}.safetensors", group)
            (partial / STATE).write_text(json.dumps({"version": VERSION, **state}, indent=1), encoding="utf-8")
            checksums = {file.name: _checksum(file) for file in sorted(partial.iterdir())}
            (partial / CHECKSUMS).write_text(json.dumps(checksums), encoding="utf-8")
            for file in (*partial.iterdir(), partial):
                sync(file)
            # the same step again, after resuming from an older checkpoint
            doomed = _mark_partial(path) if path.exists() else None
            partial.rename(path)
            sync(path.parent)
            if doomed is not None:
                shutil.rmtree(doomed, ignore_errors=True)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _checksum(path: Path) -> str:
    crc = 0
    with open_regular(path) as file:
        while block := file.read(READ_BYTES):
            crc = zlib.crc32(block, crc)
    return f"{crc:08x}"


# reading --------------------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path, needed: Sequence[str] = ("model",), resumable: bool = False) -> Checkpoint:
    """Read and check a checkpoint folder, to the CPU.

    needed: file stems of the tensors to read. resumable: also check the state that a run continues from.

    Raises:
        UserError: not a checkpoint, another version of the format, or the disk fails.
        Damaged: a file is missing, broken, or holds something else.
    """
    try:
        state = _read_state(path)
        files = {stem: path / f"{stem}.safetensors" for stem in needed}
        _check_files(path, [path / STATE, *files.values()])
        _check_state(state, resumable)
        tensors = {stem: load_file(file) for stem, file in files.items()}
    except FileNotFoundError as error:
        raise Damaged(path, f"no {Path(error.filename).name}") from None
    except OSError as error:
        if error.errno:  # the disk or the network failed, which says nothing about the file
            raise UserError(f"checkpoint {path} cannot be read ({error}); run again when it can") from None
        raise Damaged(path, f"{Path(str(error.filename)).name} is {error.strerror}") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise Damaged(path, " ".join(str(error).split())) from None
    return Checkpoint(path, state, tensors)


def _read_state(path: Path) -> dict[str, Any]:
    """state.json; another version is refused before anything else is looked at."""
    state = _read_json(path / STATE)
    if not isinstance(state, dict):
        raise ValueError(f"{STATE} must be an object")
    check_version(f"checkpoint {path}", state, VERSION)
    return state


def _read_json(path: Path) -> Any:
    return json.loads(read_regular(path, MAX_JSON_BYTES))


def _check_files(path: Path, files: Iterable[Path]) -> None:
    """Check that files are regular, and compare them with checksums.json."""
    stored = _read_json(path / CHECKSUMS)
    for file in files:
        open_regular(file).close()
        if not isinstance(stored, dict) or stored.get(file.name) != _checksum(file):
            raise ValueError(f"{file.name} does not match its checksum")


def _check_state(state: dict[str, Any], resumable: bool) -> None:
    check(STATE, state, _State)
    _check_arch(state["arch"])
    if not resumable:
        return
    for key in ("progress", "scaler"):
        if key not in state:
            raise ValueError(f"{STATE} has no '{key}'")
    if state["scaler"] and state["scaler"].keys() != SCALER_KEYS:
        raise ValueError("scaler is not the state of a loss scaler")


def _check_arch(arch: dict[str, Any]) -> None:
    kind: type = TimmArch if "timm" in arch else Arch
    sizes = [value for value in arch.values() if type(value) is int]
    if arch.keys() != {f.name for f in fields(kind)} or min(sizes, default=0) < 1:
        raise ValueError("arch is not an architecture")
    try:
        check("arch", arch, kind)
    except UserError as error:  # too large
        raise ValueError(f"arch is not an architecture: {error}") from None
    if arch["width"] % arch.get("heads", 1) or arch["image_size"] % arch["patch_size"]:
        raise ValueError("arch is not an architecture")


def stored_recipe(checkpoint: Checkpoint) -> Recipe:
    """The recipe of a checkpoint's run. Raises UserError: this version cannot read it."""
    try:
        return recipe_from_dict(checkpoint.state["name"], checkpoint.state["recipe"])
    except UserError as error:
        raise UserError(f"checkpoint {checkpoint.path}: {error}; was it written by a newer fastft?") from None


def forms(tensors: Mapping[str, Tensor]) -> Forms:
    """Shape and dtype of each tensor."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[torch.Size, torch.dtype]], path: Path, what: str
) -> None:
    """Compare names, shapes and dtypes of a checkpoint's tensors with what they are to be loaded into.

    Raises Damaged: an entry is missing, superfluous, or has another shape or dtype.
    """
    for name in sorted(expected.keys() - tensors.keys())[:1]:
        raise Damaged(path, f"{what} has no {name}")
    for name in sorted(tensors.keys() - expected.keys())[:1]:
        raise Damaged(path, f"{what} has an unknown {name}")
    for name, (shape, dtype) in expected.items():
        if tensors[name].shape != shape or tensors[name].dtype != dtype:
            form = f"{tuple(tensors[name].shape)} {tensors[name].dtype}"
            raise Damaged(path, f"{name} of {what} is {form}, expected {tuple(shape)} {dtype}")


# folders of checkpoints -----------------------------------------------------------------------------------------------


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` names: a checkpoint folder, or a run directory's best, else its last.

    Raises UserError: there is none.
    """
    if is_checkpoint(path):
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    checkpoints = list_checkpoints(folder, "best") or list_checkpoints(folder)
    if not checkpoints:
        raise UserError(f"{path} holds no checkpoint; give a run directory or one of its checkpoints")
    return checkpoints[-1]


def is_checkpoint(path: Path) -> bool:
    """True if a path is, or by its name was, a checkpoint folder."""
    return (path / STATE).exists() or _is_checkpoint_name(path.name)


def list_checkpoints(folder: Path, kind: str = "step") -> list[Path]:
    """The checkpoints of a folder, oldest first; kind: "step" or "best"."""
    checkpoints = (p for p in folder.glob(f"{kind}-*") if _is_checkpoint_name(p.name) and p.is_dir())
    return sorted(checkpoints, key=step_of)


def step_of(path: Path) -> int:
    """The number in a checkpoint's name: optimiser steps done, or the epoch of a best one."""
    return int(path.name.partition("-")[2])


def _is_checkpoint_name(name: str) -> bool:
    return re.fullmatch("step-[0-9]{8,18}|best-[0-9]{4,18}", name) is not None


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and the remains of interrupted writes."""
    for old in list_checkpoints(folder)[:-keep]:
        _remove(old)
    for partial in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(partial, ignore_errors=True)


def set_aside(path: Path) -> None:
    """Rename a damaged checkpoint to `damaged-...`, so that it is neither read again nor removed as an old one."""
    aside = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def keep_only(path: Path) -> None:
    """Remove the other checkpoints of the same kind, also newer ones from before the run was resumed at an older step."""
    for other in list_checkpoints(path.parent, path.name.partition("-")[0]):
        if other != path:
            _remove(other)


def _remove(path: Path) -> None:
    """Rename, then remove: an interrupted removal must not leave half a checkpoint under a valid name."""
    shutil.rmtree(_mark_partial(path), ignore_errors=True)


def _mark_partial(path: Path) -> Path:
    """Rename a checkpoint as the remains of an interrupted write, which `prune` removes."""
    doomed = path.parent / f"{PARTIAL}old-{path.name}"
    shutil.rmtree(doomed, ignore_errors=True)
    return path.rename(doomed)
