"""How a training ends early, by exception; the command line makes exit codes of them."""

from beton_tools.errors import UserError

EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: try again later


class Preempted(Exception):
    """Training stopped on a signal after writing a checkpoint; the process exits with EXIT_REQUEUE."""


class PeerLost(Preempted):
    """Another process ended or cannot be reached; training continues from the last checkpoint."""


class LoneError(UserError):
    """Bad input that one of several processes has met, a damaged sample or a full disk: no other one will tell of it."""


class PeerFailed(UserError):
    """Another process has met bad input, and left word of it."""


class PeerCrashed(Exception):
    """Another process ended with an error that is no bad input, and has printed it: another try would meet it again."""


class NonFinite(Exception):
    """The loss became inf or nan, or every fp16 step overflows; the message names step, samples and checkpoint."""
