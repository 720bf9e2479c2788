"""Clocks for loops that Numba compiles, and how the time of loader threads is told apart.

`read` is wall time, as a thread that waits for the disk does nothing; `decode` and `augment` are the thread's time on a
core, so that other work on the machine does not count.
"""

import time

import numpy as np
from numba import njit, types

PAGE = 4096
READ, DECODE, AUGMENT = range(3)
PARTS = ("read", "decode", "augment")
WALL, CPU = time.CLOCK_MONOTONIC, time.CLOCK_THREAD_CPUTIME_ID

_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.intp))


@njit(cache=True, nogil=True)
def now(clock: int, room: np.ndarray) -> int:
    """Nanoseconds of a POSIX clock. room: int64 (2,), a timespec to write to."""
    _clock_gettime(clock, room.ctypes.data)
    return room[0] * 1_000_000_000 + room[1]


@njit(cache=True, nogil=True)
def fault_in(data: np.ndarray) -> int:
    """Read a byte of every page of mapped memory, which waits for the disk where they are not in RAM; their sum."""
    total = 0
    for at in range(0, data.size, PAGE):
        total += data[at]
    return total


class WorkClock:
    """Nanoseconds of each thread by part, added up in compiled code; read from another thread meanwhile."""

    def __init__(self, threads: int) -> None:
        self.spent = np.zeros((threads, len(PARTS)), np.int64)
        self._taken = np.zeros(len(PARTS), np.int64)

    def take(self) -> dict[str, float]:
        """Seconds of all threads by part since the last call."""
        total = self.spent.sum(axis=0)
        seconds = (total - self._taken) / 1e9
        self._taken = total
        return dict(zip(PARTS, seconds.tolist(), strict=True))
