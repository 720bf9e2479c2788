"""End this process if its launcher dies while the processes are connecting.

torchrun hosts the store through which they connect. Without it the connection waits for its time limit, 10 minutes, in C++, where
neither an exception nor a signal handler of Python can end it.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fastft.train.exceptions import EXIT_REQUEUE

POLL_SECONDS = 0.5
STARTED_BY_TORCHRUN = "TORCHELASTIC_RUN_ID"  # in the environment of its processes
LAUNCHER = "FASTFT_LAUNCHER"  # process number of `fastft.train.launch`, which may have ended while modules were imported


@contextmanager
def exit_without_launcher() -> Iterator[None]:
    """Print one line and exit with EXIT_REQUEUE if torchrun ends within the block. Nothing may need to be saved there."""
    if STARTED_BY_TORCHRUN not in os.environ:
        yield
        return
    launcher, connected = int(os.environ.get(LAUNCHER, os.getppid())), threading.Event()

    def watch() -> None:
        while not connected.wait(POLL_SECONDS):
            if os.getppid() != launcher:
                print(
                    "fastft: error: the launcher ended before all processes were connected; start it again",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
                os._exit(EXIT_REQUEUE)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        connected.set()
        thread.join()
