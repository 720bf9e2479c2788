"""Train a recipe: find the other processes, build the trainer, run it, and turn its failures into errors."""

from typing import Any

import torch
from rich.console import Console

from beton_tools.base.errors import UserError
from fastft.photos.prepare import line_printer, prepare_data
from fastft.recipe import Recipe
from fastft.run.checkpoint import list_checkpoints
from fastft.run.run_directory import run_folder
from fastft.train.distributed import World, find_world, peer_lost
from fastft.train.preempt import SignalGuard
from fastft.train.stream import training_stream
from fastft.train.trainer import Trainer


def train(recipe: Recipe, console: Console | None = None) -> dict[str, Any]:
    """Train a recipe, or continue its run directory; returns the content of `result.json`.

    Raises:
        UserError: bad input.
        Preempted: stopped by a signal after a checkpoint, or another process is gone.
        NonFinite: the loss is NaN or Inf.
        KeyboardInterrupt: SIGINT; no checkpoint is written.
    """
    console = console or Console(markup=False)
    recipe = prepare_data(recipe, line_printer(console))
    world = find_world(recipe.train.device, recipe.train.timeout_minutes, "train.device")
    guard = SignalGuard()
    try:
        with (
            world,
            guard,
            training_stream(world.device),
            _set_up(recipe, world, guard, console) as trainer,
        ):
            return _fit(trainer, world)
    except RuntimeError as error:
        if not world.is_peer_loss(error):
            raise
        guard.check()  # the others were interrupted too, and ended first
        found = list_checkpoints(run_folder(recipe) / "checkpoints")
        then = f"continues after {found[-1].name}" if found else "starts anew: there is no checkpoint yet"
        raise peer_lost(error, f"the same command {then}") from None


def _set_up(recipe: Recipe, world: World, guard: SignalGuard, console: Console) -> Trainer:
    """The trainer, once every process has one; if set-up fails in one process, all raise its error."""
    try:
        trainer = Trainer(recipe, world, guard, console)
    except UserError as error:
        world.check_consistent(str(error), {})
        raise
    try:
        world.check_consistent(None, trainer.consistency_key())
    except UserError:
        trainer.close()
        raise
    return trainer


def _fit(trainer: Trainer, world: World) -> dict[str, Any]:
    """Train; an error that only this process can meet is published to the others."""
    try:
        return trainer.fit()
    except torch.OutOfMemoryError:
        error = UserError(
            f"the GPU's memory is too small for micro-batches of {trainer.phase.micro_batch}; set a lower "
            "--train.micro_batch, or --train.grad_checkpointing=true"
        )
        raise world.publish_error(error) from None
    except UserError as error:
        raise world.publish_error(error) from error
