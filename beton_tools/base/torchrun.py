"""Ranks and world sizes from the environment variables that torchrun sets. Without them: one process, rank 0."""

import os

from beton_tools.base.errors import UserError


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdigit()):
        raise UserError(
            f"{name} is {text!r}, but must be a whole number. Start with torchrun, which sets it, or unset it"
        )
    return int(text)


def check_environment() -> None:
    """Check the variables that several processes need. Raises UserError if one is missing or not a number."""
    if world_size() == 1:
        return
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UserError(
                f"WORLD_SIZE is {world_size()}, but {name} is not set. Start with torchrun, which sets both, or unset WORLD_SIZE"
            )
    if rank() >= world_size():
        raise UserError(f"RANK is {rank()}, but must be less than WORLD_SIZE, {world_size()}. Start with torchrun")


def unused_tasks() -> str:
    """Return a warning if Slurm booked several tasks for a run that has one process, else ""."""
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if world_size() > 1 or not (tasks.isascii() and tasks.isdigit() and int(tasks) > 1):
        return ""
    return (
        f"warning: Slurm booked {tasks} tasks (SLURM_NTASKS), but this run has one process. Start it with torchrun, as "
        "rcp/slurm/train.sbatch does, or book one task"
    )


def rank() -> int:
    """Return this process's number among all processes in the run, from 0.

    All processes have the same results. Rank 0 prints and writes them.
    """
    return _number("RANK", 0)


def world_size() -> int:
    """Return the number of processes in the run, on all hosts."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """Return this process's number on its host, from 0.

    It is 0 if LOCAL_RANK is not a number, so that errors can be printed.
    """
    text = os.environ.get("LOCAL_RANK", "0")
    return int(text) if text.isascii() and text.isdigit() else 0


def local_world_size() -> int:
    """Return the number of the run's processes on this host."""
    return _number("LOCAL_WORLD_SIZE", 1)
