"""Check the values in JSON files against types with msgspec.

The check is strict, and reports the first difference on one line.

Dataclasses, or classes derived from `Document`, describe objects. Keys that they do not name are allowed. A key with
the default UNSET may be missing, but not null.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from beton_tools.base.errors import UserError

LARGEST, LEAST = 1e30, 1e-30  # beyond these, quotients of floats overflow

Number = Annotated[float, Meta(ge=0, le=LARGEST)]
Signed = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Positive = Annotated[float, Meta(ge=LEAST, le=LARGEST)]
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]  # like NumPy's int64
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
    """Base class for JSON objects. A class with defaults repeats `kw_only=True` if it has a subclass."""


def check_version(where: str, document: Mapping[str, Any], version: int) -> None:
    """Raise UserError if a file states another version of its format."""
    found = document.get("version")
    if found != version:
        raise UserError(
            f"{where} has format version {found!r:.40}, expected {version}. Use the fastft version that wrote it"
        )


def check(where: str, value: Any, kind: Any) -> Any:
    """Convert the value from a JSON file to the type `kind`.

    Raises:
        ValueError: The value does not have this type. The message begins with `where` and names the key and the types.
    """
    try:
        return msgspec.convert(dict(value) if isinstance(value, Mapping) else value, kind)
    except (msgspec.ValidationError, OverflowError) as error:
        raise ValueError(f"{where}: {str(error).replace('`', '')}") from None
