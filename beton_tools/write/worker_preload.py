"""Imported only by the server process that forks worker processes, so that workers start with their code loaded.

Loading compiled code from Numba's cache takes a third of a second, in which a worker encodes 300 images.
"""

import atexit
import os
from collections.abc import Callable

from beton_tools.write.images import warm_up


def _quietly(fork: Callable[[], int]) -> Callable[[], int]:
    """End the server without a traceback if no process can be started. The process that asked it says so."""

    def forked() -> int:
        try:
            return fork()
        except OSError:
            os._exit(os.EX_OSERR)

    return forked


os.fork = _quietly(os.fork)
atexit.register(os._exit, 0)  # the server ends at once: dismantling Numba takes seconds, in which it keeps stderr open
warm_up()
