"""The exception that ends a command with exit code 2."""

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_MESSAGE = 200  # characters kept from a library's message, which may quote a file
CORRECT = "Correct this or free some space. The same command continues"


class UserError(Exception):
    """Bad input. The message is one line that states what is wrong and what to do about it."""


def require(holds: object, what: str) -> None:
    """Raise ValueError with the message `what` unless `holds` is true.

    This is for file readers, whose caller turns the error into one UserError that names the file.
    """
    if not holds:
        raise ValueError(what)


@contextmanager
def report_disk_errors(what: object, then: str) -> Iterator[None]:
    """Raise UserError for an OSError: `what` cannot be written, the reason, and `then`, which says what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} cannot be written ({error.strerror or error}). {then}") from None


def first_line(error: Exception) -> str:
    """Summarise another library's error: its type and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:160]


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of an error's message, or the error's type if it has no message."""
    line = (str(error).splitlines() or [""])[0]
    return line[:LONGEST_MESSAGE].partition(". ")[0].rstrip(".") or type(error).__name__
