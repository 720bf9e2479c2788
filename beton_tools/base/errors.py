"""The exception that ends a command with exit code 2."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, and what to do about it."""


@contextmanager
def report_disk_errors(what: object, then: str) -> Iterator[None]:
    """Raise UserError for an OSError: `what` cannot be written, the reason, and what to do then."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} cannot be written ({error.strerror or error}); {then}") from None


def first_line(error: Exception) -> str:
    """An error of another library in a few words: its type and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:160]
