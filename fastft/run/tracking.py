"""Log to TensorBoard, Weights & Biases or MLflow if the recipe says so. A resumed run continues the same record.

The last two read where to write from their own environment variables (WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI,
...).
"""

import importlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from beton_tools.base.errors import UserError
from beton_tools.base.typed_json import Document
from fastft.run.json_files import read_document, write_document

PROJECT, TENSORBOARD = "fastft", "tensorboard"
FAILED = 1  # exit code that marks a wandb run as failed
_log = logging.getLogger("fastft.run")


class Tracker(Protocol):
    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self, failed: bool) -> None: ...


class _Record(Document):
    """The content of wandb.json and mlflow.json in a run directory."""

    id: str


def open_tracker(kind: str, folder: Path, name: str, recipe: Mapping[str, Any], steps_done: int = 0) -> Tracker | None:
    """Start or continue the tracker's record for the run in `folder`, after `steps_done` steps. None for 'none'.

    If a tracker does not start, a resumed run warns and goes on without it.

    Raises:
        UserError: the library is not installed, it does not start for a new run, or the file with the record's name is
            damaged.
    """
    if kind == "none":
        return None
    library = import_tracker(kind)
    if kind == TENSORBOARD:  # later steps in the folder's earlier files are discarded
        return _TensorBoard(library.SummaryWriter(str(folder / kind), purge_step=steps_done + 1))
    stored = folder / f"{kind}.json"
    record = read_document(stored, _Record, "delete it to start a new record")
    known = None if record is None else record.id
    try:
        tracker: Any = (_Wandb if kind == "wandb" else _Mlflow)(library, folder, name, recipe, known)
    except Exception as error:  # network, log-in, ...
        reason = f"{kind} failed to start ({' '.join(str(error).split())})"
        if known is None:
            raise UserError(f"{reason}. Set --train.tracker=none") from None
        _log.warning("%s: this process does not log to it", reason)
        return None
    if known is None:
        write_document(stored, _Record(id=tracker.id))
    return tracker


def import_tracker(kind: str) -> Any:
    """Import the library for `train.tracker`. Raises UserError if it is not installed."""
    try:
        return importlib.import_module("torch.utils.tensorboard" if kind == TENSORBOARD else kind)
    except ImportError:
        raise UserError(
            f"train.tracker is {kind}, which is not installed. Run pip install {kind}, or set it to none"
        ) from None


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, wandb: Any, folder: Path, name: str, recipe: Mapping[str, Any], known: str | None) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=folder,
            name=name,
            config=dict(recipe),
            id=known,
            resume="allow",
        )
        # wandb's own step counter cannot go back, as a resume does
        self._run.define_metric("*", step_metric="step")
        self.id = str(self._run.id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def close(self, failed: bool) -> None:
        self._run.finish(FAILED if failed else 0)


class _Mlflow:
    def __init__(self, mlflow: Any, folder: Path, name: str, recipe: Mapping[str, Any], known: str | None) -> None:
        self._mlflow = mlflow
        if known is None:
            mlflow.set_experiment(PROJECT)
            flat = {f"{s}.{k}": v for s, options in recipe.items() for k, v in options.items()}
            self.id = str(mlflow.start_run(run_name=name).info.run_id)
            mlflow.log_params(flat)
        else:
            self.id = str(mlflow.start_run(run_id=known).info.run_id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self, failed: bool) -> None:
        self._mlflow.end_run("FAILED" if failed else "FINISHED")
