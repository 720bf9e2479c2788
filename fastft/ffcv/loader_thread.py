"""The running pass in FFCV 1.0.2's loader thread: its epoch and seed, and how it reports errors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Full
from typing import Any, NamedTuple

import numpy as np
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.memory_managers import OSCacheManager
from ffcv.pipeline.compiler import Compiler
from numba import types

POLL_SECONDS = 0.1  # between two checks whether the consumer has left


class Pass(NamedTuple):
    """The pass over a loader that the current thread serves."""

    path: str
    seed: int
    epoch: int
    workers: int


def current_pass(seed: int | None) -> Pass:
    """Return the pass of this thread, which must be FFCV's thread. `seed` defaults to the loader's seed."""
    loader = threading.current_thread().loader  # type: ignore[attr-defined]
    # `Loader.__iter__` increases `next_epoch` before it starts the thread
    return Pass(loader.fname, loader.seed if seed is None else seed, max(0, loader.next_epoch - 1), loader.num_workers)


class _Failure:
    """Takes the place of a batch, and raises the error when `EpochIterator.__next__` unpacks it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __iter__(self) -> Any:
        raise self.error


def reporting(work: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that what it raises in FFCV's thread is raised in the loop over the loader.

    FFCV would print the error and leave the loop waiting for ever.
    """

    def run(*arguments: Any) -> Any:
        try:
            return work(*arguments)
        except Exception as error:
            iterator = threading.current_thread()
            if not isinstance(iterator, EpochIterator):
                raise
            while not iterator.terminate_event.is_set():
                with suppress(Full):
                    iterator.output_queue.put(_Failure(error), timeout=POLL_SECONDS)
                    break
            raise StopIteration from error  # ends FFCV's thread as after its last batch

    return run


def _compile_reader(self: OSCacheManager) -> Any:
    """Do what `OSCacheManager.compile_reader` does, but without changing Numba's own types.

    FFCV 1.0.2 sets `mutable` on the type `uint8[::1]`, which Numba shares between all functions. Functions that are
    compiled later then do not match their own signatures, and are compiled again at every call.
    """
    pages = types.Array(types.uint8, 1, "C", readonly=True)
    state = types.Tuple([pages, types.uint64[::1], types.uint64[::1]])

    def read(address, mem_state):  # type: ignore[no-untyped-def]
        size = mem_state[2][np.searchsorted(mem_state[1], address)]
        return mem_state[0][address : address + size]

    return Compiler.compile(read, pages(types.uint64, state))


OSCacheManager.compile_reader = _compile_reader
