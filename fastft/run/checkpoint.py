"""Checkpoint folders: complete under their name or absent, checked when they are read, and never unpickled.

A checkpoint holds `model.safetensors`, `ema.safetensors`, `optimizer.safetensors` (moments by parameter name), `state.json`
(recipe, position, scaler, evaluations, class names) and `checksums.json` (the other files' CRC-32). It is written under
a temporary name, flushed to disk, then renamed.
"""

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import structs
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from beton_tools.base.atomic import sync
from beton_tools.base.errors import CORRECT, UserError, report_disk_errors
from beton_tools.base.typed_json import Count, Document, Number, Numbers, Object, Positive, check, check_version
from beton_tools.base.user_files import file_checksum, read_regular
from fastft.data.warnings import listing
from fastft.model import Arch, TimmArch
from fastft.model.arch import MAX_STATE_BYTES, STATE
from fastft.model.weight_files import save_tensors
from fastft.recipe import FinalRecipe, recipe_from_dict
from fastft.run.average_record import AverageRecord
from fastft.run.evaluations import Evaluation
from fastft.run.identity import Identity
from fastft.run.json_files import VERSION, as_json

PARTIAL = ".partial-"
CHECKSUMS = "checksums.json"


Forms = dict[str, tuple[torch.Size, torch.dtype]]


class Logged(Document):
    """Sums over the steps since the last log line.

    Attributes:
        loss_sum: mean over processes.
        seconds: duration without pauses.
        waited: how many of these seconds were spent waiting for data.
        split: seconds by part (train/timing.py).
    """

    steps: Count
    loss_sum: Number
    seconds: Number
    waited: Number
    split: Numbers


class StoredStep(Document):
    """How steps are computed: the fields of `fastft.train.step.StepChoice`, and the device that it was chosen on."""

    mode: str
    attention: str
    device: str


class ScalerState(Document):
    """A loss scaler's state, named as in `torch.amp.GradScaler.state_dict`."""

    scale: Positive
    growth_factor: Positive
    backoff_factor: Positive
    growth_interval: Count
    growth_tracker: Count = msgspec.field(name="_growth_tracker")


class Position(Document):
    """The next step to train, and the results so far.

    Attributes:
        step: within the epoch.
        seconds: time spent training, summed over all resumes.
    """

    epoch: Count = 0
    step: Count = 0
    seconds: Number = 0.0
    evaluations: list[Evaluation] = msgspec.field(default_factory=list)
    logged: Logged | None = None
    step_choice: StoredStep | None = None


class ModelState(Identity, kw_only=True, omit_defaults=True):
    """The part of state.json that is constant in a run.

    With it a checkpoint can be used by itself, even if the architecture's file has moved, and runs can be told apart.

    Attributes:
        name: the recipe's name.
        class_counts: training images by label.
    """

    name: str
    class_counts: list[Count]

    @classmethod
    def of_run(cls, name: str, identity: Identity, class_counts: Sequence[int]) -> "ModelState":
        return cls(name=name, class_counts=list(class_counts), **structs.asdict(identity))


class State(ModelState, kw_only=True, omit_defaults=True):
    """The content of state.json.

    Attributes:
        progress, scaler: what a run continues from. There is no scaler in bf16 and fp32.
        evaluation: the weights' evaluation, in a best epoch's checkpoint.
        average: what `fastft average` made the weights from.
    """

    progress: Position | None = None
    scaler: ScalerState | None = None
    evaluation: Evaluation | None = None
    average: AverageRecord | None = None

    @classmethod
    def of(cls, model: ModelState, **more: Any) -> "State":
        constant = {field: getattr(model, field) for field in ModelState.__struct_fields__}
        return cls(**constant, **more)

    @property
    def evaluations(self) -> list[Evaluation]:
        """The evaluations before the checkpoint."""
        return [] if self.progress is None else self.progress.evaluations

    @property
    def own_evaluation(self) -> Evaluation | None:
        """The checkpoint's own evaluation. None if its weights were not evaluated."""
        if self.evaluation is not None or self.progress is None or self.progress.step:
            return self.evaluation
        return next((e for e in self.evaluations if e.epoch == self.progress.epoch - 1), None)


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint folder. `tensors` is keyed by file stem: model, ema, optimizer."""

    path: Path
    state: State
    tensors: dict[str, dict[str, Tensor]]


class Damaged(UserError):
    """A checkpoint whose files are incomplete or contradict each other. An older one can be used."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"checkpoint {path} is damaged ({reason}). Use an older one")


# writing --------------------------------------------------------------------------------------------------------------


def write_checkpoint(path: Path, state: ModelState, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write the folder `path`. An interrupted write leaves only a `.partial-` folder, which later writes remove.

    Raises:
        UserError: the disk is full or fails.
    """
    partial = path.parent / f"{PARTIAL}{path.name}"
    with report_disk_errors(f"checkpoint {path}", CORRECT):
        if partial.exists():
            shutil.rmtree(partial)
        try:
            partial.mkdir(parents=True)
            for name, group in tensors.items():
                save_tensors(partial / f"{name}.safetensors", group)
            (partial / STATE).write_text(as_json(state), encoding="utf-8")
            checksums = {file.name: file_checksum(file) for file in sorted(partial.iterdir())}
            (partial / CHECKSUMS).write_text(json.dumps(checksums), encoding="utf-8")
            for file in (*partial.iterdir(), partial):
                sync(file)
            # the same step was reached again, after resuming from an older checkpoint
            doomed = _mark_partial(path) if path.exists() else None
            partial.rename(path)
            sync(path.parent)
            if doomed is not None:
                shutil.rmtree(doomed, ignore_errors=True)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise


# reading --------------------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path, needed: Sequence[str] = ("model",), resumable: bool = False) -> Checkpoint:
    """Read and check a checkpoint folder, to the CPU.

    Args:
        needed: stems of the tensor files to read.
        resumable: also check the state that a run continues from.

    Raises:
        UserError: the folder is not a checkpoint or has another format version, or the disk fails.
        Damaged: a file is missing, broken, or holds something else.
    """
    try:
        document = _read_json(path / STATE)
        if isinstance(document, dict):
            check_version(f"checkpoint {path}", document, VERSION)
        files = {stem: path / f"{stem}.safetensors" for stem in needed}
        _check_files(path, [path / STATE, *files.values()])
        state = _check_state(document, resumable)
        tensors = {stem: load_file(file) for stem, file in files.items()}
    except FileNotFoundError as error:
        raise Damaged(path, f"no {Path(error.filename).name}") from None
    except OSError as error:
        if error.errno:  # the disk or the network failed, which says nothing about the file
            raise UserError(
                f"checkpoint {path} cannot be read ({error}). Run the same command again when it can"
            ) from None
        raise Damaged(path, f"{Path(str(error.filename)).name} is {error.strerror}") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise Damaged(path, " ".join(str(error).split())) from None
    return Checkpoint(path, state, tensors)


def _read_json(path: Path) -> Any:
    return json.loads(read_regular(path, MAX_STATE_BYTES))


def _check_files(path: Path, files: Iterable[Path]) -> None:
    """Compare files with checksums.json."""
    stored = _read_json(path / CHECKSUMS)
    for file in files:
        if not isinstance(stored, dict) or stored.get(file.name) != file_checksum(file):
            raise ValueError(f"{file.name} does not match its checksum")


def _check_state(document: Any, resumable: bool) -> State:
    if isinstance(document, dict) and document.get("scaler") == {}:  # version 1 at first stored no scaler as {}
        document = document | {"scaler": None}
    state: State = check(STATE, document, State)
    _check_arch(state.arch)
    if resumable and state.progress is None:
        raise ValueError(f"{STATE} has no 'progress'")
    return state


def _check_arch(arch: Object) -> None:
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


def stored_recipe(checkpoint: Checkpoint) -> FinalRecipe:
    """Return the recipe in a checkpoint. Raises UserError if this version cannot read it."""
    try:
        return recipe_from_dict(checkpoint.state.name, checkpoint.state.recipe)
    except UserError as error:
        raise UserError(f"checkpoint {checkpoint.path}: {error}. Was it written by a newer fastft?") from None


def forms(tensors: Mapping[str, Tensor]) -> Forms:
    """Return each tensor's shape and dtype."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[torch.Size, torch.dtype]], path: Path, what: str
) -> None:
    """Check that a checkpoint's tensors match the model in names, shapes and dtypes.

    Raises:
        Damaged: an entry is missing, superfluous, or has another shape or dtype.
    """
    for name in sorted(expected.keys() - tensors.keys())[:1]:
        raise Damaged(path, f"{what} has no {name}")
    for name in sorted(tensors.keys() - expected.keys())[:1]:
        raise Damaged(path, f"{what} has an unknown {name}")
    for name, (shape, dtype) in expected.items():
        if tensors[name].shape != shape or tensors[name].dtype != dtype:
            form = f"{tuple(tensors[name].shape)} {tensors[name].dtype}"
            raise Damaged(path, f"{name} of {what} is {form}, expected {tuple(shape)} {dtype}")


# checkpoint folders ---------------------------------------------------------------------------------------------------


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that `path` names: a checkpoint folder, or a run directory's best checkpoint, else its last.

    Raises:
        UserError: there is none.
    """
    if is_checkpoint(path):
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    checkpoints = list_checkpoints(folder, "best") or list_checkpoints(folder)
    if not checkpoints:
        refuse_folder_of_runs(path)
        raise UserError(f"{path} holds no checkpoint. Give a run directory or a checkpoint in it")
    return checkpoints[-1]


def refuse_folder_of_runs(path: Path) -> None:
    """Raise UserError, which names the first runs, if a folder is no run but contains some."""
    runs = [str(folder.parent) for folder in sorted(path.glob("*/checkpoints"))]
    if runs:
        raise UserError(f"{path} contains runs. Give one of them: {listing(runs)}")


def is_checkpoint(path: Path) -> bool:
    """True if a path is a checkpoint folder, or if its name says that it was one."""
    return (path / STATE).exists() or _is_checkpoint_name(path.name)


def list_checkpoints(folder: Path, kind: str = "step") -> list[Path]:
    """List the checkpoints in a folder, oldest first. kind: "step" or "best"."""
    checkpoints = (p for p in folder.glob(f"{kind}-*") if _is_checkpoint_name(p.name) and p.is_dir())
    return sorted(checkpoints, key=step_of)


def step_of(path: Path) -> int:
    """Return the number in a checkpoint's name: optimiser steps done, or the epoch for a best checkpoint."""
    return int(path.name.partition("-")[2])


def _is_checkpoint_name(name: str) -> bool:
    return re.fullmatch("step-[0-9]{8,18}|best-[0-9]{4,18}", name) is not None


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what interrupted writes left behind."""
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
    """Remove all other checkpoints of this kind, even newer ones, which remain if a run was resumed at an older step."""
    for other in list_checkpoints(path.parent, path.name.partition("-")[0]):
        if other != path:
            _remove(other)


def _remove(path: Path) -> None:
    """Rename a checkpoint, then remove it. An interrupted removal must not leave half of it under a valid name."""
    shutil.rmtree(_mark_partial(path), ignore_errors=True)


def _mark_partial(path: Path) -> Path:
    """Rename a checkpoint so that it counts as an interrupted write, which `prune` removes."""
    doomed = path.parent / f"{PARTIAL}old-{path.name}"
    shutil.rmtree(doomed, ignore_errors=True)
    return path.rename(doomed)
