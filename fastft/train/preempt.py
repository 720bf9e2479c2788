"""SIGTERM and SIGUSR1 ask for a checkpoint and an orderly end, as Slurm and spot machines do before they take a node."""

import signal
from types import FrameType, TracebackType

from beton_tools.errors import UserError

EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: try again later

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(Exception):
    """Training stopped on a signal after writing a checkpoint; the process exits with EXIT_REQUEUE."""


class PeerLost(Preempted):
    """Another process ended or cannot be reached; training continues from the last checkpoint."""


class LoneError(UserError):
    """Bad input that one of several processes has met, a damaged sample or a full disk: no other one will tell of it."""


class PeerFailed(UserError):
    """Another process has met bad input, and left word of it."""


class PreemptionGuard:
    """Context in which the signals only set `requested`; the training loop looks at it between steps."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "PreemptionGuard":
        self._previous = {s: signal.signal(s, self._note) for s in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
