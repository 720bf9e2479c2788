"""Signals during training request a checkpoint and an orderly end.

Batch systems and spot machines send one of the signals before they take a node away. A closed terminal sends SIGHUP.
"""

import os
import signal
from types import FrameType

from beton_tools.base import torchrun
from beton_tools.base.signals import STOP_SIGNALS, in_main_thread

ANNOUNCED = b"\ninterrupted: ends after this step, with a checkpoint; Ctrl-C again ends at once\n"


class SignalGuard:
    """A context in which signals set `requested`, which the training loop reads between steps.

    `interrupted` tells whether one of the signals was SIGINT. SIGINT sets `requested` from `defer_interrupts` on.
    Before that, and from the second SIGINT on, it does what it did before the context. A handler that raises can do so
    while the main thread holds a lock in another library (`queue.Queue`, rich). That lock then stays locked and makes a
    later call wait for ever.

    In threads other than the main one, signals are not handled: a program that trains in such a thread handles its own.
    """

    def __init__(self) -> None:
        self.requested = self.interrupted = False
        self._deferring = False

    def __enter__(self) -> "SignalGuard":
        self._previous = {}
        for number in (*STOP_SIGNALS, signal.SIGINT) if in_main_thread() else ():
            # nohup makes processes ignore SIGHUP, and training must survive it
            if signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def defer_interrupts(self) -> None:
        """Call this when there is something to save."""
        self._deferring = True

    def is_stop_requested(self) -> bool:
        """Return `requested`, for evaluations. The trainer's own method would keep the trainer in memory."""
        return self.requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            self.requested = True
        elif self._deferring and not self.interrupted:
            self.requested = self.interrupted = True
            if torchrun.local_rank() == 0:
                os.write(2, ANNOUNCED)
        else:
            before = self._previous[signal.SIGINT]
            if callable(before):
                before(number, frame)
            else:
                signal.signal(number, before)
                signal.raise_signal(number)
