"""Values from JSON files as dataclasses, checked against the types of their fields."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
_WORDS = {int: "a whole number from 0 to 2^63 - 1", float: "a number", str: "a string", bool: "true or false"}


def from_json(kind: type[T], entries: Any) -> T:
    """A dataclass from a JSON object; keys that it does not have are ignored.

    Raises:
        ValueError: not an object, or a field is missing or has another type.
    """
    if not isinstance(entries, dict):
        raise ValueError("it is not an object")
    hints, values = get_type_hints(kind), {}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in entries:
            values[field.name] = check_type(entries[field.name], hints[field.name], field.name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{field.name} is missing")
    return kind(**values)


def check_type(value: Any, kind: Any, name: str) -> Any:
    """The value, with lists in the places of tuples converted. Integers are numbers from 0 to 2^63 - 1; True is none.

    Raises:
        ValueError: it has another type.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for part in parts:
            try:
                return check_type(value, part, name)
            except ValueError:
                continue
    elif origin is list and isinstance(value, list):
        return [check_type(item, parts[0], name) for item in value]
    elif origin is dict and isinstance(value, dict):
        return {key: check_type(item, parts[1], name) for key, item in value.items()}
    elif origin is tuple and isinstance(value, list) and len(value) == len(parts):
        return tuple(check_type(item, part, name) for item, part in zip(value, parts, strict=True))
    elif kind is int and type(value) is int and 0 <= value < 1 << 63:
        return value
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif kind in (str, bool, NoneType) and type(value) is kind:
        return value
    elif is_dataclass(kind):
        return from_json(kind, value)  # type: ignore[arg-type]
    raise ValueError(f"{name} is not {_WORDS.get(kind, kind)}")
