"""A run directory: recipe, logs, checkpoints; and whether it may be continued with the recipe at hand."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from beton_tools.errors import UserError
from beton_tools.pagefile import try_lock
from fastft.atomic import write_text
from fastft.config import Recipe
from fastft.model import Arch
from fastft.report.imagenet import expected_top1
from fastft.train.evaluate import Scores
from fastft.train.log import format_seconds

# may differ between the processes of a run: where the files of its host are, how it works
LOCAL = {
    "data.train", "data.val", "data.workers", "data.batches_ahead", "model.weights", "train.run_dir", "train.compile",
    "train.micro_batch", "train.grad_checkpointing",
}  # fmt: skip
# options that may differ when a run is resumed: they do not change what is computed in which step; that the data is the
# same in another place, refuse_changed_data sees
FREE = {
    "data.train", "data.val", "data.train_size", "data.workers", "data.batches_ahead",
    "train.run_dir", "train.device", "train.compile", "train.micro_batch", "train.grad_checkpointing", "train.log_every",
    "train.timeout_minutes", "train.tracker",
    "train.eval_every", "train.checkpoint_steps", "train.checkpoint_minutes", "train.keep_checkpoints",
    "schedule.stop_epoch", "about.top1", "about.source",
}  # fmt: skip


@dataclass
class Progress:
    """Where a run is: the next step to train, and what has been reached."""

    epoch: int = 0
    step: int = 0  # within the epoch
    seconds: float = 0.0  # of training, over all resumes
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    logged: dict[str, Any] | None = None  # what the next line of the log has so far (Meter.state)

    def add(self, epoch: int, raw: Scores, ema: Scores | None) -> None:
        entry: dict[str, Any] = {"epoch": epoch, "raw": asdict(raw)}
        if ema is not None:
            entry["ema"] = asdict(ema)
        self.evaluations.append(entry)

    def evaluated(self, epoch: int) -> bool:
        return any(entry["epoch"] == epoch for entry in self.evaluations)

    def best(self) -> dict[str, Any] | None:
        """The evaluation of the best epoch: by the EMA's top-1 where there is one, as the paper reports."""
        return max(self.evaluations, key=headline_top1, default=None)


def headline_top1(evaluation: dict[str, Any]) -> float:
    return float(evaluation.get("ema", evaluation["raw"])["top1"])


def run_folder(recipe: Recipe) -> Path:
    return Path(recipe.train.run_dir or f"runs/{recipe.name}").expanduser()


def shared_options(recipe: Recipe) -> str:
    """What all processes of a run must have in common, as JSON."""
    return json.dumps({k: v for k, v in _flat(recipe.as_dict()).items() if k not in LOCAL}, sort_keys=True)


def refuse_changed_recipe(stored: dict[str, Any], recipe: Recipe, folder: Path) -> None:
    """Raise UserError naming the options that differ between a run's checkpoint and the recipe that is to continue it."""
    now = _flat(recipe.as_dict())
    then = _flat(stored)
    changed = sorted(
        k
        for k in now.keys() | then.keys()
        if k not in FREE and _plain(k, now.get(k)) != _plain(k, then.get(k))
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


def lock_run(folder: Path) -> IO[str]:
    """A file whose lock keeps other processes out of a run directory, until it is closed or the process is gone.

    Raises:
        UserError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / ".lock").open("w")
    if not try_lock(file):
        file.close()
        raise UserError(f"{folder} is in use by another process; wait for it, or use another --train.run_dir")
    return file


def write_recipe(folder: Path, recipe: Recipe) -> None:
    sections = json.loads(json.dumps(recipe.as_dict()))  # tuples become lists
    text = f"# resolved recipe of this run ({recipe.name})\n" + yaml.safe_dump(sections, sort_keys=False)
    write_text(folder / "recipe.yaml", text)


def describe_model(
    recipe: Recipe, arch: Arch, classes: Sequence[str], data: dict[str, Any]
) -> dict[str, Any]:
    """What makes a checkpoint usable by itself: the recipe, and the tower's numbers, as its file may move."""
    return {
        "name": recipe.name,
        "recipe": json.loads(json.dumps(recipe.as_dict())),
        "arch": asdict(arch),
        "classes": list(classes),
        "data": data,
    }


def write_result(folder: Path, result: dict[str, Any]) -> None:
    write_text(folder / "result.json", json.dumps(result, indent=1))


def summarise(progress: Progress, recipe: Recipe) -> dict[str, Any]:
    """Best-epoch EMA (the paper's protocol), last-epoch EMA and raw, in percent, beside what was expected."""
    best, last = progress.best(), progress.evaluations[-1] if progress.evaluations else None
    return {
        "recipe": recipe.name,
        "epochs": progress.epoch,
        "seconds": progress.seconds,
        "best": best,
        "last": last,
        "expected_top1": expected_top1(recipe),
        "source": recipe.about.source,
        "evaluations": progress.evaluations,
    }


def conclusion(result: dict[str, Any]) -> str:
    """One line for the end of a run."""
    best, last = result["best"], result["last"]
    if best is None or last is None:
        return "done; no validation data, nothing was evaluated"
    parts = [f"best {headline_top1(best):.3f} (epoch {best['epoch']}{', EMA' if 'ema' in best else ''})"]
    parts += [f"last EMA {last['ema']['top1']:.3f}"] if "ema" in last else []
    parts += [f"last raw {last['raw']['top1']:.3f}"]
    expected = f"; expected {result['expected_top1']} ({result['source']})" if result["expected_top1"] else ""
    return f"top-1 in percent: {', '.join(parts)}{expected}; {format_seconds(result['seconds'])} of training"


def _flat(sections: dict[str, Any]) -> dict[str, Any]:
    return {f"{s}.{k}": v for s, entries in sections.items() for k, v in entries.items()}


def _plain(option: str, value: Any) -> Any:
    """As JSON has it; of weights the name, as their file may move."""
    if option == "model.weights":
        return Path(value).name
    return list(value) if isinstance(value, tuple) else value
