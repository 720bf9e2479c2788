"""Check the values of JSON files against types, by msgspec: strict, and one line for the first value that differs.

Dataclasses, or classes derived from `Document`, describe objects; keys that they do not name are allowed. A key with the default
UNSET may be missing, but not null.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from beton_tools.base.errors import UserError

LARGEST, LEAST = 1e30, 1e-30  # beyond them quotients of floats overflow

Number = Annotated[float, Meta(ge=0, le=LARGEST)]
Signed = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Positive = Annotated[float, Meta(ge=LEAST, le=LARGEST)]
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]  # as NumPy's int64
Whole = Annotated[int, Meta(ge=1)]
Numbers = dict[str, Number]
Object = dict[str, Any]
Unset = UnsetType

__all__ = [
    "UNSET",
    "Count",
    "Document",
    "Number",
    "Numbers",
    "Object",
    "Positive",
    "Signed",
    "Unset",
    "Whole",
    "check",
    "check_version",
]


class Document(msgspec.Struct, kw_only=True):
    """Base of the types of JSON objects. `kw_only=True` is stated again where a class with defaults has a subclass."""


def check_version(where: str, document: Mapping[str, Any], version: int) -> None:
    """Raise UserError if a file states another version of its format."""
    found = document.get("version")
    if found != version:
        raise UserError(
            f"{where} has format version {found!r:.40}, expected {version}; use the version of fastft that wrote it"
        )


def check(where: str, value: Any, kind: Any) -> Any:
    """The value of a JSON file as a `kind`.

    Raises ValueError: it is not of this type; the message begins with `where` and names key and types.
    """
    try:
        return msgspec.convert(dict(value) if isinstance(value, Mapping) else value, kind)
    except (msgspec.ValidationError, OverflowError) as error:
        raise ValueError(f"{where}: {str(error).replace('`', '')}") from None
