"""Errors that a user can cause are one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from beton_tools.base.errors import UserError


@contextmanager
def refuses(match: str) -> Iterator[None]:
    """A UserError of one line that matches."""
    with pytest.raises(UserError, match=match) as caught:
        yield
    assert "\n" not in str(caught.value)
