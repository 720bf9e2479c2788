"""SIGTERM and SIGUSR1 ask for a checkpoint and an orderly end, as Slurm and spot machines do before they take a node."""

import signal
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


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
