"""Train a recipe: find the other processes, set up, run, and turn failures into errors."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from rich.console import Console

from beton_tools.base.errors import UserError
from fastft.machine.distributed import World, connected, find_world
from fastft.recipe import Recipe
from fastft.run.checkpoint import list_checkpoints
from fastft.run.run_directory import run_folder
from fastft.train.preempt import SignalGuard
from fastft.train.reporting import open_log
from fastft.train.setup import Setup, build_setup, halve_if_too_large
from fastft.train.trainer import Trainer

HIGH_PRIORITY = -1  # of CUDA streams: lower numbers go first


def train(recipe: Recipe, console: Console | None = None) -> dict[str, Any]:
    """Train a recipe on .beton files, or continue its run directory; returns the content of `result.json`.

    `fastft.photos.prepare.prepare_data` gives a recipe of photographs its .beton files.

    Raises:
        UserError: bad input.
        Preempted: stopped by a signal after a checkpoint, or another process is gone.
        NonFinite: the loss is NaN or Inf.
        KeyboardInterrupt: SIGINT (Ctrl-C), after a checkpoint if the first step has begun; a second one ends at once.
    """
    console, advice = console or Console(markup=False), partial(_where_it_continues, recipe)
    with (
        connected(find_world(recipe.train.device, recipe.train.timeout_minutes, "train.device"), advice) as world,
        SignalGuard() as guard,
        training_stream(world.device),
        _set_up(recipe, world, guard, console) as setup,
        open_log(setup, console) as log,
    ):
        return _fit(Trainer(setup, log))


def _where_it_continues(recipe: Recipe) -> str:
    checkpoints = list_checkpoints(run_folder(recipe) / "checkpoints")
    after = f"continues after {checkpoints[-1].name}" if checkpoints else "starts anew: there is no checkpoint yet"
    return f"the same command {after}"


@contextmanager
def _set_up(recipe: Recipe, world: World, guard: SignalGuard, console: Console) -> Iterator[Setup]:
    """The set-up, once every process has one; if it fails in one process, all raise its error."""
    say = console.print if world.is_main else lambda line: None
    with ExitStack() as opened:
        try:
            setup = build_setup(recipe, world, guard, opened, say)
        except UserError as error:
            world.check_consistent(str(error), {})
            raise
        world.check_consistent(None, setup.consistency_key())
        yield halve_if_too_large(setup, say)


def _fit(trainer: Trainer) -> dict[str, Any]:
    """Train; an error that only this process can meet is published to the others."""
    try:
        return trainer.fit()
    except torch.OutOfMemoryError:
        error = UserError(
            f"the GPU's memory is too small for micro-batches of {trainer.setup.micro_batches.size}; set a lower "
            "--train.micro_batch, or --train.grad_checkpointing=true"
        )
        raise trainer.world.publish_error(error) from None
    except UserError as error:
        raise trainer.world.publish_error(error) from error


def training_stream(device: torch.device) -> AbstractContextManager:
    """Context in which PyTorch queues work on a high-priority stream; on a CPU it does nothing.

    The loader's augmentation kernels run on streams of normal priority: blocks of the training step that are ready to run
    go before theirs.
    """
    if device.type != "cuda":
        return nullcontext()
    stream = _high_priority_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)


@cache
def _high_priority_stream(device: torch.device) -> torch.cuda.Stream:
    """One per device: PyTorch caches memory by stream, so the trainings of a sweep share it."""
    return torch.cuda.Stream(device, priority=HIGH_PRIORITY)
