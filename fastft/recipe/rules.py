"""Rules for values read from JSON files: a test, and the words for the error message."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

LARGEST, LEAST = 1e30, 1e-30  # beyond them quotients of floats overflow

Rule = tuple[Callable[[Any], bool], str]


def is_number(value: Any) -> bool:
    """Return True for an int or float from 0 to LARGEST. Booleans are not numbers."""
    return type(value) in (int, float) and 0 <= value <= LARGEST


def _all_numbers(kind: type, values_of: Callable[[Any], Iterable[Any]]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind) and all(map(is_number, values_of(value)))


def one_of(*texts: str) -> Rule:
    return lambda v: isinstance(v, str) and v in texts, f"one of {', '.join(texts)}"


TEXT: Rule = lambda v: isinstance(v, str), "a string"
LIST: Rule = lambda v: isinstance(v, list), "a list"
OBJECT: Rule = lambda v: isinstance(v, dict), "an object"
NUMBER: Rule = is_number, "a number >= 0"
SIGNED: Rule = lambda v: type(v) in (int, float) and is_number(abs(v)), "a number"
POSITIVE: Rule = lambda v: is_number(v) and v >= LEAST, "a number > 0"
NUMBER_OR_NULL: Rule = lambda v: v is None or is_number(v), "a number >= 0, or null"
NUMBERS: Rule = _all_numbers(list, iter), "a list of numbers >= 0"
WHOLE: Rule = lambda v: type(v) is int and v >= 1, "a whole number >= 1"
COUNT: Rule = lambda v: type(v) is int and v >= 0, "a whole number >= 0"
FLAG: Rule = lambda v: type(v) is bool, "true or false"
NUMBERS_BY_NAME: Rule = _all_numbers(dict, dict.values), "an object of numbers >= 0"
TEXTS: Rule = lambda v: isinstance(v, list) and all(isinstance(t, str) for t in v), "a list of strings"
SECTIONS: Rule = (
    lambda v: isinstance(v, dict) and all(isinstance(section, dict) for section in v.values()),
    "an object of objects",
)


def check_keys(where: str, entry: Any, rules: Mapping[str, Rule], optional: Iterable[str] = ()) -> None:
    """Check the keys of an object that `rules` names; `optional` ones may be missing.

    Raises:
        ValueError: `entry` is not an object, lacks a key, or has a value that breaks its rule.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be an object")
    for key in rules:
        if key not in entry and key not in optional:
            raise ValueError(f"{where} has no '{key}'")
    for key, (holds, words) in rules.items():
        if key in entry and not holds(entry[key]):
            raise ValueError(f"{where}: {key} must be {words}")
