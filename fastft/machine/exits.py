"""Exceptions that end a run. The command line turns them into exit codes."""

from beton_tools.base.errors import UserError

EXIT_REQUEUE = 75  # EX_TEMPFAIL in sysexits.h: try again later


class Preempted(Exception):
    """Training stopped on a signal after writing a checkpoint. The process exits with EXIT_REQUEUE."""


class TimeUp(Preempted):
    """Training stopped after `train.stop_after`, with a checkpoint."""


class PeerLost(Preempted):
    """Another process died or stopped responding. The same command continues from the last checkpoint.

    is_told_here: this process prints the line, because it is the first of its host that noticed. Local rank 0 may be lost.
    """

    def __init__(self, text: str, is_told_here: bool | None = None) -> None:
        super().__init__(text)
        self.is_told_here = is_told_here


class GpuLost(Preempted):
    """Trying a kernel has left the GPU unusable for this process. The same command goes on without that kernel."""


class GpuFailed(Preempted):
    """This process's GPU failed. The message names host and device. On another GPU the same command continues."""


class LocalRankError(UserError):
    """Bad input found by this process only, such as a damaged sample or a full disk, so this process must print it."""


class PeerFailed(UserError):
    """Another process found bad input and published its error."""


class PeerCrashed(Exception):
    """Another process ended with an unexpected error, which it has printed. Running again would repeat it."""


class NonFinite(Exception):
    """The loss is NaN or Inf, or every recent fp16 step overflows. The message names step, samples and checkpoint."""
