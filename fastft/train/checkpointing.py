"""A run's checkpoints: when to save within an epoch, writing in the background, restoring the newest intact one.

The module also collects and loads a step's tensors. `fastft.train.trainer` decides about saving at an epoch's end and when a
run stops.
"""

import time
from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from beton_tools.base.errors import UserError
from fastft.machine.distributed import World
from fastft.recipe.schema import Train as TrainOptions
from fastft.run.checkpoint import (
    Checkpoint,
    Damaged,
    ModelState,
    ScalerState,
    State,
    check_tensors,
    forms,
    keep_only,
    list_checkpoints,
    prune,
    read_checkpoint,
    set_aside,
    step_of,
    write_checkpoint,
)
from fastft.run.evaluations import Evaluation
from fastft.train.progress import Progress
from fastft.train.step import Step

ADAMW_STATE = ("exp_avg", "exp_avg_sq")  # these have the parameter's shape. `step` is a scalar


class Checkpointing:
    """Saves and restores one run.

    `save` returns when the tensors are copied to host memory. A thread in the main process writes them, and `finish`
    waits for it. If a process is killed meanwhile, only the newest checkpoint is lost: it is left incomplete, under a
    temporary name.
    """

    def __init__(self, folder: Path, options: TrainOptions, world: World) -> None:
        self.folder, self._options, self._world = folder, options, world
        self._existing = list_checkpoints(folder)
        self.damaged: list[Damaged] = []
        self._writer = futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: futures.Future[None] | None = None
        self._last_save = time.monotonic()

    # restoring --------------------------------------------------------------------------------------------------------

    @property
    def exist(self) -> bool:
        """True if there is something to restore."""
        return bool(self._existing)

    def restore(
        self, step: Step, steps_per_epoch: int, refuse_other: Callable[[ModelState], None]
    ) -> tuple[Progress, ModelState]:
        """Load the newest undamaged checkpoint into `step`, and return its progress and its run.

        Newer damaged ones are listed in `damaged`.

        Args:
            refuse_other: raises UserError if a checkpoint's state is from another run.

        Raises:
            UserError: all checkpoints are damaged, or one is from another run.
        """
        for path in reversed(self._existing):
            try:
                # before the tensors are read, because a checkpoint of another recipe has other files
                refuse_other(read_checkpoint(path, (), resumable=True).state)
                checkpoint = read_checkpoint(path, tuple(step_tensors(step)), resumable=True)
                progress = _stored_progress(checkpoint, steps_per_epoch)
                load_step_tensors(step, checkpoint)
            except Damaged as error:
                self.damaged.append(error)
                continue
            if checkpoint.state.scaler is not None:
                step.scaler.load_state_dict(msgspec.to_builtins(checkpoint.state.scaler))
            return progress, checkpoint.state
        reason = f"the newest: {self.damaged[0].reason}"
        raise UserError(
            f"every checkpoint in {self.folder} is damaged ({reason}). Restore one, or remove the folder to start anew"
        )

    def prepare_folder(self, best: Evaluation | None) -> None:
        """Make the folder, set damaged checkpoints aside, and remove all best-epoch checkpoints but the one for `best`.

        Args:
            best: the evaluation that the restored state names. Another best checkpoint was written just before the
                process was killed. When its epoch is trained again, it need not be the best again.
        """
        self.folder.mkdir(exist_ok=True)
        for error in self.damaged:
            set_aside(error.path)
        if best is not None and (recorded := self._best_path(best.epoch)).is_dir():
            keep_only(recorded)

    def _best_path(self, epoch: int) -> Path:
        return self.folder / f"best-{epoch:04}"

    # saving -----------------------------------------------------------------------------------------------------------

    def is_due(self, global_step: int) -> bool:
        """True if this process would save after this step. Clocks differ between processes."""
        every, minutes = self._options.checkpoint_steps, self._options.checkpoint_minutes
        by_clock = bool(minutes) and time.monotonic() - self._last_save > 60 * minutes
        return by_clock or (bool(every) and global_step % every == 0)

    def save(self, step: Step, progress: Progress, global_step: int, run: ModelState, best: bool = False) -> None:
        """Start to write a checkpoint.

        Args:
            run: the constant part of the state (`Setup.state`).
            best: also keep these weights as the best epoch's.

        Raises:
            UserError: the previous checkpoint could not be written.
        """
        self._last_save = time.monotonic()
        if not self._world.is_main:
            return
        self.wait()
        tensors = {
            group: {name: torch.empty(x.shape, dtype=x.dtype).copy_(x.detach()) for name, x in named.items()}
            for group, named in step_tensors(step).items()
        }
        scaler = msgspec.convert(step.scaler.state_dict(), ScalerState) if step.scaler.is_enabled() else None
        state = State.of(run, progress=progress.frozen(), scaler=scaler)
        evaluation = progress.evaluations[-1] if best else None
        self._pending = self._writer.submit(self._write, global_step, run, state, tensors, evaluation)

    def raise_if_failed(self) -> None:
        """Raise the UserError if a write has failed since the last call."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is written. Raises UserError if it could not be written."""
        if self._pending is not None:
            futures.wait([self._pending])  # Ctrl-C while waiting leaves the write pending
            pending, self._pending = self._pending, None
            pending.result()

    def finish(self) -> None:
        """Wait, in all processes, until the last checkpoint is written."""
        self.wait()
        self._world.barrier()

    def close(self) -> None:
        """Wait for a write in progress. The writer accepts no more checkpoints."""
        self._writer.shutdown()

    def _write(
        self,
        global_step: int,
        run: ModelState,
        state: State,
        tensors: Mapping[str, Mapping[str, Tensor]],
        evaluation: Evaluation | None,
    ) -> None:
        if evaluation is not None:
            best = self._best_path(evaluation.epoch)
            write_checkpoint(
                best, State.of(run, evaluation=evaluation), {"model": tensors.get("ema", tensors["model"])}
            )
        write_checkpoint(self.folder / f"step-{global_step:08}", state, tensors)
        if evaluation is not None:
            keep_only(best)
        prune(self.folder, self._options.keep_checkpoints)


def _stored_progress(checkpoint: Checkpoint, steps_per_epoch: int) -> Progress:
    """Return the progress in a checkpoint. Its position must be the one in the checkpoint's name."""
    progress = Progress(**msgspec.structs.asdict(checkpoint.state.progress or Progress()))
    position = progress.epoch * steps_per_epoch + progress.step
    if progress.step >= steps_per_epoch or position != step_of(checkpoint.path):
        raise Damaged(checkpoint.path, f"its progress is epoch {progress.epoch}, step {progress.step}")
    return progress


# a step's tensors: weights, EMA, and the optimiser's state by parameter name ------------------------------------------


def step_tensors(step: Step) -> dict[str, dict[str, Tensor]]:
    """Return every tensor that a run continues from, by file stem and name. The tensors are not copied."""
    tensors = {"model": step.model.state_dict(), "optimizer": optimizer_tensors(step.optimizer)}
    if step.ema is not None:
        tensors["ema"] = step.ema.module.state_dict()
    return tensors


@torch.no_grad()
def load_step_tensors(step: Step, checkpoint: Checkpoint) -> None:
    """Load what `step_tensors` returned, everything or nothing, into tensors with the parameters' memory formats.

    Raises:
        Damaged: an entry is missing, superfluous, or has another shape or dtype.
    """
    init_optimizer_state(step.optimizer)
    live = step_tensors(step)
    for stem, tensors in live.items():
        check_tensors(checkpoint.tensors[stem], forms(tensors), checkpoint.path, f"{stem}.safetensors")
    for stem, tensors in live.items():
        for name, tensor in tensors.items():
            tensor.copy_(checkpoint.tensors[stem][name])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return every optimiser state tensor as `<parameter name>/<state name>`. Parameter groups carry their `names`."""
    return {
        f"{name}/{key}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def init_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Give AdamW the state that it makes in its first step, so that a checkpoint at step 0 is like all others."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moments = {key: torch.zeros_like(parameter, requires_grad=False) for key in ADAMW_STATE}
            optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
