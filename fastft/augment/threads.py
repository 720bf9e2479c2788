"""Run compiled functions in several Python threads. They release the GIL, so the threads use all cores.

Numba's own parallel loops need a threading layer, and each layer fails in some situation. TBB waits for ever when a
process ends on one core (numba#10556, oneTBB#2056). "workqueue" aborts the process when two loaders run at the same
time. OpenMP aborts in a forked process.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="fastft-worker")


os.register_at_fork(after_in_child=_pool.cache_clear)  # the threads of a process do not exist in its fork


def run_in_threads(work: Callable[..., None], threads: int, *arguments: Any) -> None:
    """Call `work(thread, *arguments)` for thread = 0 to threads - 1 at the same time.

    Returns when all calls have finished.

    `work` must release the GIL (`nogil=True`). Calls beyond the number of cores wait for a free thread, so no call
    may wait for another one. An error in any call is raised here.
    """
    others = [_pool().submit(work, thread, *arguments) for thread in range(1, threads)]
    try:
        work(0, *arguments)
    finally:
        wait(others)
    for other in others:
        other.result()
