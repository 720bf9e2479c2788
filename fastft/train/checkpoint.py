"""Checkpoints that survive anything: complete under their name or not there at all, and never unpickled.

A checkpoint is a folder: `model.safetensors`, `ema.safetensors`, `optimizer.safetensors` (moments by parameter name) and
`state.json` (recipe, position, scaler, best result, class names). It is written beside its name, flushed to disk, then
renamed.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from beton_tools.errors import UserError

VERSION = 1
PARTIAL = ".partial-"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds; `tensors` by file stem: model, and where written ema and optimizer."""

    path: Path
    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def write_checkpoint(
    path: Path, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Write the folder `path`; an interrupted write leaves only a `.partial-` folder, which later writes remove."""
    partial = path.parent / f"{PARTIAL}{path.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name, group in tensors.items():
            save_file(
                {k: v.detach().cpu().contiguous() for k, v in group.items()}, partial / f"{name}.safetensors"
            )
        (partial / "state.json").write_text(
            json.dumps({"version": VERSION, **state}, indent=1), encoding="utf-8"
        )
        for file in (*partial.iterdir(), partial):
            _flush(file)
        if path.exists():  # the same step again, after a resume from an older one
            _remove(path)
        partial.rename(path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:  # safetensors has its own for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            f"checkpoint {path} could not be written: {error}; free some space and run again"
        ) from None


class Damaged(UserError):
    """A checkpoint that was whole once."""


def read_checkpoint(path: Path, needed: Sequence[str] = ("model",)) -> Checkpoint:
    """Read a checkpoint folder, to the CPU; `needed` are the file stems of the tensors that it must hold.

    Raises:
        UserError: not a checkpoint, of another version, or the disk does not give it.  Damaged: a file is missing or broken.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        tensors = {f.stem: load_file(f) for f in sorted(path.glob("*.safetensors"))}
    except FileNotFoundError:
        raise UserError(
            f"{path} is not a checkpoint (no state.json); give a folder under <run>/checkpoints"
        ) from None
    except OSError as error:  # of the disk or the network, not of what was written
        raise UserError(f"checkpoint {path} cannot be read ({error}); mend that, and run again") from None
    except (SafetensorError, ValueError) as error:
        raise Damaged(f"checkpoint {path} is damaged ({error}); use an older one") from None
    if not isinstance(state, dict) or not isinstance(state.get("recipe"), dict):
        raise Damaged(f"checkpoint {path} is damaged (no recipe in its state.json); use an older one")
    if state.get("version") != VERSION:
        raise UserError(
            f"checkpoint {path} is of version {state.get('version')}, this fastft reads version {VERSION}"
        )
    for stem in needed:
        if stem not in tensors:
            raise Damaged(f"checkpoint {path} is damaged (no {stem}.safetensors); use an older one")
    return Checkpoint(path, state, tensors)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a user means by `path`: a checkpoint folder, or a run folder (its best, else its last)."""
    if (path / "state.json").is_file():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = step_checkpoints(folder, "best-") or step_checkpoints(folder)
    if not found:
        raise UserError(f"{path} holds no checkpoint; give a run folder or one of its checkpoints")
    return found[-1]


def step_checkpoints(folder: Path, prefix: str = "step-") -> list[Path]:
    """Complete checkpoints of a folder, oldest first."""
    return sorted(p for p in folder.glob(f"{prefix}*") if (p / "state.json").is_file())


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what interrupted writes have left."""
    for old in step_checkpoints(folder)[:-keep]:
        _remove(old)
    for partial in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(partial, ignore_errors=True)


def put_aside(path: Path) -> None:
    """Rename a damaged checkpoint, so that it is none of those that are kept; the last of a step stays."""
    aside = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def keep_only(path: Path) -> None:
    """Remove the other checkpoints of its kind, newer ones of a course that was given up too."""
    prefix = path.name.partition("-")[0]
    for other in step_checkpoints(path.parent, f"{prefix}-"):
        if other != path:
            _remove(other)


def _remove(path: Path) -> None:
    """Renamed first: a removal that is interrupted must not leave half a checkpoint under a valid name."""
    doomed = path.parent / f"{PARTIAL}old-{path.name}"
    shutil.rmtree(doomed, ignore_errors=True)
    shutil.rmtree(path.rename(doomed), ignore_errors=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every state tensor of the optimiser as `<parameter name>/<state name>`; groups carry their `names`."""
    return {
        f"{name}/{key}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, state_name = key.rpartition("/")
        by_name.setdefault(name, {})[state_name] = value
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if name in by_name:
                optimizer.state[parameter] = {k: _beside(parameter, v) for k, v in by_name[name].items()}


def _beside(parameter: Tensor, value: Tensor) -> Tensor:
    """A state tensor on the parameter's device and, where it is as large, in its memory format, as fused kernels want it."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
