"""Clocks for compiled loops, and the time that loader threads spend on each part of their work.

`read` is wall time, because a thread that waits for the disk uses no core; `decode` and `augment` are the CPU time of the
thread, so that other programs on the machine do not count.
"""

import time

import numpy as np
from numba import njit, types

READ, DECODE, AUGMENT = range(3)
PARTS = ("read", "decode", "augment")
WALL, CPU = time.CLOCK_MONOTONIC, time.CLOCK_THREAD_CPUTIME_ID

_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.intp))


@njit(cache=True, nogil=True)
def now(clock: int, timespec: np.ndarray) -> int:
    """Nanoseconds of a POSIX clock. timespec: int64 (2,), overwritten."""
    _clock_gettime(clock, timespec.ctypes.data)
    return timespec[0] * 1_000_000_000 + timespec[1]


class WorkClock:
    """Nanoseconds of each thread by part. Compiled loops add to `spent`; any thread may call `pop`."""

    def __init__(self, threads: int) -> None:
        self.spent = np.zeros((threads, len(PARTS)), np.int64)
        self._popped = np.zeros(len(PARTS), np.int64)

    def pop(self) -> dict[str, float]:
        """Seconds of all threads by part since the last call."""
        total = self.spent.sum(axis=0)
        seconds = (total - self._popped) / 1e9
        self._popped = total
        return dict(zip(PARTS, seconds.tolist(), strict=True))
