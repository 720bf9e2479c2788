"""Signals during training: most of them ask for a checkpoint and an orderly end, Ctrl-C for an end at the next safe place.

Batch systems and spot machines send one of the signals before they take a node away; a closed terminal sends SIGHUP.
"""

import signal
from types import FrameType

from beton_tools.base.signals import STOP_SIGNALS


class SignalGuard:
    """Context in which signals only set flags, which the training loop reads between steps.

    requested: one of STOP_SIGNALS came. interrupted: SIGINT came after `defer_interrupts`.

    A Python signal handler that raises can do so while the main thread holds a lock of another library (`queue.Queue`,
    rich), which then stays locked and makes a later call wait for ever. A second SIGINT does what it did before the context.
    """

    def __init__(self) -> None:
        self.requested = self.interrupted = False
        self._deferring = False

    def __enter__(self) -> "SignalGuard":
        self._previous = {}
        for number in (*STOP_SIGNALS, signal.SIGINT):
            # nohup ignores SIGHUP, and training is to survive it
            if signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def defer_interrupts(self) -> None:
        """From here on the first SIGINT sets `interrupted` instead of raising; `check` raises."""
        self._deferring = True

    def check(self) -> None:
        """Raise KeyboardInterrupt if SIGINT came. Called where no lock is held: between batches and during waits."""
        if self.interrupted:
            raise KeyboardInterrupt

    def is_stop_requested(self) -> bool:
        """`check`, then `requested`; evaluations take it, as the trainer's own method would keep the trainer in memory."""
        self.check()
        return self.requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            self.requested = True
        elif self._deferring and not self.interrupted:
            self.interrupted = True
        else:
            self.interrupted = True
            before = self._previous[signal.SIGINT]
            if callable(before):
                before(number, frame)
            else:
                signal.signal(number, before)
                signal.raise_signal(number)
