"""Train a recipe: find the other processes, set up, run, and turn failures into errors."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from pathlib import Path

import torch
from rich.console import Console

from beton_tools.base.errors import UserError
from fastft.machine.distributed import World
from fastft.machine.preempt import SignalGuard
from fastft.recipe import FinalRecipe
from fastft.run.inputs import Inputs
from fastft.run.result import Result
from fastft.train.reporting import open_log
from fastft.train.setup import Setup, build_setup, halve_if_too_large, out_of_memory
from fastft.train.trainer import Trainer

HIGH_PRIORITY = -1  # for CUDA streams, lower numbers go first


def train(
    recipe: FinalRecipe,
    inputs: Inputs,
    folder: Path,
    world: World,
    guard: SignalGuard,
    console: Console,
    deadline: float,
) -> Result:
    """Train a final recipe, or continue its run directory `folder`, and return the content of `result.json`.

    The caller holds the run directory, which has the earlier stages' results. `fastft.jobs.run` carries out all stages.

    Args:
        deadline: by `time.monotonic`. After it, the run stops with a checkpoint.

    Raises:
        UserError: bad input.
        Preempted: stopped by a signal after a checkpoint, or another process is gone.
        NonFinite: the loss is NaN or Inf.
        KeyboardInterrupt: SIGINT (Ctrl-C), after a checkpoint if the first step has begun. A second one ends at once.
    """
    with (
        training_stream(world.device),
        _set_up(recipe, inputs, folder, world, guard, deadline, console) as setup,
        open_log(setup, console) as log,
    ):
        return _fit(Trainer(setup, log))


@contextmanager
def _set_up(
    recipe: FinalRecipe,
    inputs: Inputs,
    folder: Path,
    world: World,
    guard: SignalGuard,
    deadline: float,
    console: Console,
) -> Iterator[Setup]:
    """Set up, once every process can. If this fails in one process, all processes raise its error."""
    say = console.print if world.is_main else lambda line: None
    with ExitStack() as opened:
        try:
            setup = build_setup(recipe, inputs, folder, world, guard, deadline, opened)
        except UserError as refusal:
            world.check_consistent(str(refusal), {})
            raise
        except torch.OutOfMemoryError:
            error = out_of_memory(recipe, world.device)
            world.check_consistent(str(error), {})
            raise error from None
        world.check_consistent(None, setup.consistency_key())
        yield halve_if_too_large(setup, say)


def _fit(trainer: Trainer) -> Result:
    """Train. If an error occurs in this process only, it is published to the others."""
    try:
        return trainer.fit()
    except torch.OutOfMemoryError:
        error = UserError(
            f"the GPU's memory is too small for micro-batches of {trainer.setup.micro_batches.size}. Set a lower "
            "--train.micro_batch, or --train.grad_checkpointing=true"
        )
        raise trainer.world.publish_error(error) from None
    except UserError as error:
        raise trainer.world.publish_error(error) from error


def training_stream(device: torch.device) -> AbstractContextManager:
    """Return a context in which PyTorch queues work on a high-priority stream. On a CPU it does nothing.

    The loader's augmentation kernels run on streams with normal priority. So the training step's blocks go first as soon as
    they are ready to run.
    """
    if device.type != "cuda":
        return nullcontext()
    stream = _high_priority_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)


@cache
def _high_priority_stream(device: torch.device) -> torch.cuda.Stream:
    """Return one stream per device. PyTorch caches memory by stream, so a sweep's runs share it."""
    return torch.cuda.Stream(device, priority=HIGH_PRIORITY)
