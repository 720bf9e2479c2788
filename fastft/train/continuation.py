"""Whether a run directory may be continued with a recipe, and whether all processes of a run agree."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from beton_tools.errors import UserError
from fastft.config import Recipe
from fastft.model import Arch

# may differ between the processes of a run: where the files of its host are, how it works
PER_HOST_OPTIONS = {
    "data.train", "data.val", "data.workers", "data.batches_ahead", "model.weights", "train.run_dir", "train.compile",
    "train.micro_batch", "train.grad_checkpointing",
}  # fmt: skip
# options that may differ when a run is resumed: they do not change what is computed in which step; that the data is the
# same in another place, refuse_changed_data sees
RESUMABLE_OPTIONS = {
    "data.train", "data.val", "data.train_size", "data.workers", "data.batches_ahead",
    "train.run_dir", "train.device", "train.compile", "train.micro_batch", "train.grad_checkpointing", "train.log_every",
    "train.timeout_minutes", "train.tracker",
    "train.eval_every", "train.checkpoint_steps", "train.checkpoint_minutes", "train.keep_checkpoints",
    "schedule.stop_epoch", "about.top1", "about.source",
}  # fmt: skip


def shared_options(recipe: Recipe) -> str:
    """What all processes of a run must have in common, as JSON."""
    return json.dumps(
        {k: v for k, v in _flat(recipe.as_dict()).items() if k not in PER_HOST_OPTIONS}, sort_keys=True
    )


def refuse_changed_recipe(stored: dict[str, Any], recipe: Recipe, folder: Path) -> None:
    """Raise UserError naming the options that differ between a run's checkpoint and the recipe that is to continue it."""
    now = _flat(recipe.as_dict())
    then = _flat(stored)
    changed = sorted(
        k
        for k in now.keys() | then.keys()
        if k not in RESUMABLE_OPTIONS and _plain(k, now.get(k)) != _plain(k, then.get(k))
    )
    if changed:
        listing = ", ".join(f"{k} {then.get(k)!r} -> {now.get(k)!r}" for k in changed)
        raise UserError(f"{folder} was trained with another recipe ({listing}); use another --train.run_dir")


def refuse_changed_arch(stored: dict[str, Any], arch: Arch, folder: Path) -> None:
    """Raise UserError where `model.arch` means another tower than it did: a file was edited, or open_clip is another."""
    changed = sorted(k for k, value in asdict(arch).items() if stored.get(k, value) != value)
    if changed:
        listing = ", ".join(f"{k} {stored[k]!r} -> {getattr(arch, k)!r}" for k in changed)
        raise UserError(
            f"{folder} was trained with another architecture ({listing}); use another --train.run_dir"
        )


def refuse_changed_data(stored: dict[str, Any], found: dict[str, Any], folder: Path) -> None:
    """Raise UserError where the training file is not that of the run's checkpoint: the order of samples hangs on it."""
    for key, then in stored.items():
        if found.get(key, then) != then:
            raise UserError(
                f"{folder} was trained on other data ({key} {then} -> {found[key]}); use the same file, or another "
                "--train.run_dir"
            )


def _flat(sections: dict[str, Any]) -> dict[str, Any]:
    return {f"{s}.{k}": v for s, entries in sections.items() for k, v in entries.items()}


def _plain(option: str, value: Any) -> Any:
    """As JSON has it; of weights the name, as their file may move."""
    if option == "model.weights":
        return Path(value).name
    return list(value) if isinstance(value, tuple) else value
