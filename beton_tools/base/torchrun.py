"""Ranks and world sizes from the environment variables that torchrun sets; without them, rank 0 of one process."""

import os


def rank() -> int:
    """Number of this process among all of the run, from 0. All have the same results; rank 0 prints and writes them."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Number of processes of the run, on all hosts."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """Number of this process on its host, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world_size() -> int:
    """Number of processes of the run on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))
