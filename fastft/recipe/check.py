"""Convert and check an option's value by its type, limits and choices."""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

import fastargs
from fastargs.validation import Checker

from beton_tools.base.errors import UserError
from fastft.recipe.constants import AUTO
from fastft.recipe.schema import PUBLISHED, SECTIONS
from fastft.recipe.yaml_file import one_line

BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}  # YAML 1.1
NONE = ("none", "null", "~")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", tuple: "three numbers"}


class OptionChecker(Checker):
    """A fastargs checker made from a field. It is strict where fastargs converts (3.7 -> 3).

    It takes texts, as files and the command line give them, and typed values from checkpoints.
    """

    def __init__(self, field: dataclasses.Field, hint: Any):
        args = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        self.optional = type(None) in args
        kind = next(a for a in args if a is not type(None))
        self.type: type = typing.get_origin(kind) or kind
        self.low, self.high, self.below = (field.metadata[k] for k in ("low", "high", "below"))
        self.choices, self.auto = field.metadata["choices"], field.metadata["auto"]
        self.words = [word for word in (AUTO, PUBLISHED) if field.metadata[word]]

    def check(self, value: Any) -> Any:
        """Return the value converted to the option's type, or `AUTO`.

        Raises ValueError, TypeError, KeyError or OverflowError if the type is wrong, or the value is outside its range or
        not among the choices.
        """
        if isinstance(value, dict) or (isinstance(value, list) and self.type is not tuple):
            raise TypeError("wrong type")
        if value in (None, "") or (self.optional and isinstance(value, str) and value.lower() in NONE):
            if self.optional:
                return None
            raise ValueError("no value")
        if self.auto and value == AUTO:
            return AUTO
        value = self._convert(value)
        if self.choices and value not in self.choices:
            raise ValueError(f"not one of {', '.join(self.choices)}")
        if self.type not in (bool, str):
            for number in value if isinstance(value, tuple) else (value,):
                self._check_limits(number)
        return value

    def _check_limits(self, number: float) -> None:
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        below = math.inf if self.below is None else self.below
        if not (low <= number <= high and -math.inf < number < below):
            raise ValueError("out of range")

    def _convert(self, value: Any) -> Any:
        if self.type is bool:
            return BOOLEANS[str(value).lower()]
        if isinstance(value, bool):
            raise TypeError("wrong type")
        if self.type is int:
            return _whole_number(value)
        if self.type is float:
            return float(value)
        if self.type is str:
            return one_line(str(value))
        parts = value.strip("[]").split(",") if isinstance(value, str) else value
        numbers = tuple(float(part) for part in parts)
        if len(numbers) != 3:
            raise ValueError("three numbers, one per channel")
        return numbers

    def help(self) -> str:
        """Return the option's type and limits, in words."""
        if self.choices:
            return "one of " + ", ".join((*self.choices, *self.words))
        limits = ((">=", self.low), ("<=", self.high), ("<", self.below))
        bounds = " and ".join(f"{sign} {limit}" for sign, limit in limits if limit is not None)
        kind = TYPE_NAMES[self.type] + (f" {bounds}" if bounds else "")
        return " or ".join([kind, *["none"] * self.optional, *self.words])


def _whole_number(value: Any) -> int:
    if isinstance(value, int) or str(value).lstrip("+-").isdecimal():
        return int(value)  # float would round it above 2^53
    number = float(value)
    if number != int(number):
        raise ValueError("not a whole number")
    return int(number)


def parse_duration(text: str, option: str) -> float:
    """Return the seconds in a text such as 45m.

    Args:
        option: what the user set, for the message.

    Raises:
        UserError: not a number greater than 0 with a unit.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", text.strip())
    seconds = float(match[1]) * SECONDS[match[2]] if match else 0.0
    if seconds <= 0:
        raise UserError(f"{option} is {text!r}. It must be a duration such as 90s, 45m, 1.5h or 2d")
    return seconds


def show_value(value: Any) -> str:
    """Format a value as it is written in a recipe. Numbers have at most 6 digits."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "[" + ", ".join(show_value(part) for part in value) + "]"
    return str(value)


def fastargs_config() -> fastargs.Config:
    """Return the schema as fastargs sections, in a separate configuration (not fastargs' global one)."""
    config = fastargs.Config()
    for section, cls in SECTIONS.items():
        hints = typing.get_type_hints(cls)
        fastargs.Section(section, (cls.__doc__ or section).strip(), config_descriptor=config).params(
            **{
                f.name: fastargs.Param(OptionChecker(f, hints[f.name]), f.metadata["help"], default=f.default)
                for f in dataclasses.fields(cls)
            }
        )
    return config
