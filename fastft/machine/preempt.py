"""Signals during training ask for a checkpoint and an orderly end.

Batch systems and spot machines send one of the signals before they take a node away; a closed terminal sends SIGHUP.
"""

import os
import signal
from types import FrameType

from beton_tools.base import torchrun
from beton_tools.base.signals import STOP_SIGNALS, in_main_thread

ANNOUNCED = b"\ninterrupted: ends after this step, with a checkpoint; Ctrl-C again ends at once\n"


class SignalGuard:
    """Context in which signals set `requested`, which the training loop reads between steps; `interrupted`: SIGINT was one.

    SIGINT does so from `defer_interrupts` on; before, and from the second one on, it does what it did before the context.
    A handler that raises can do so while the main thread holds a lock of another library (`queue.Queue`, rich), which then
    stays locked and makes a later call wait for ever.

    In other threads than the main one signals are not handled: a program that trains in such a thread handles its own.
    """

    def __init__(self) -> None:
        self.requested = self.interrupted = False
        self._deferring = False

    def __enter__(self) -> "SignalGuard":
        self._previous = {}
        for number in (*STOP_SIGNALS, signal.SIGINT) if in_main_thread() else ():
            # nohup ignores SIGHUP, and training is to survive it
            if signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def defer_interrupts(self) -> None:
        """Call it when there is something to save."""
        self._deferring = True

    def is_stop_requested(self) -> bool:
        """`requested`, for evaluations: the trainer's own method would keep the trainer in memory."""
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
