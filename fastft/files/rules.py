"""Rules for values read from JSON files: a test, and the words for the error message."""

import math
from collections.abc import Callable, Iterable
from typing import Any

Rule = tuple[Callable[[Any], bool], str]


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _all_numbers(kind: type, values_of: Callable[[Any], Iterable[Any]]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind) and all(map(is_number, values_of(value)))


TEXT: Rule = lambda v: isinstance(v, str), "a text"
LIST: Rule = lambda v: isinstance(v, list), "a list"
OBJECT: Rule = lambda v: isinstance(v, dict), "an object"
NUMBER: Rule = is_number, "a number, 0 or more"
POSITIVE: Rule = lambda v: is_number(v) and v > 0, "a number greater than 0"
NUMBER_OR_NULL: Rule = lambda v: v is None or is_number(v), "a number, 0 or more, or null"
NUMBERS: Rule = _all_numbers(list, iter), "a list of numbers, 0 or more"
WHOLE: Rule = lambda v: type(v) is int and v >= 1, "a whole number >= 1"
FLAG: Rule = lambda v: type(v) is bool, "true or false"
NUMBERS_BY_NAME: Rule = _all_numbers(dict, dict.values), "an object of numbers, 0 or more"


def check_keys(where: str, entry: Any, rules: dict[str, Rule], optional: Iterable[str] = ()) -> None:
    """Raise ValueError where `entry` is no object, lacks a key of `rules`, or has it with another kind of value."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be an object")
    for key in rules:
        if key not in entry and key not in optional:
            raise ValueError(f"{where} has no '{key}'")
    for key, (holds, words) in rules.items():
        if key in entry and not holds(entry[key]):
            raise ValueError(f"{where}: {key} must be {words}")
