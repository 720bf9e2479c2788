"""Argument parsing for the `fastft` and `beton` commands: one-line errors and numeric argument types."""

import argparse
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from beton_tools.base.console import EXIT_BAD_INPUT, printable


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> Any:
        help = "" if message.endswith("?") else f". See {self.prog} --help"
        self.exit(EXIT_BAD_INPUT, printable(f"{self.prog}: {message}{help}") + "\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            near = get_close_matches(str(value), action.choices, 1)
            choose = f"Did you mean {near[0]}?" if near else f"Choose from {', '.join(map(str, action.choices))}"
            raise argparse.ArgumentError(action, f"'{value}' is not known. {choose}")


def parse_number(kind: type[int] | type[float], text: str) -> float | None:
    """Return the number that a text states, or None if it states none."""
    try:
        return kind(text)
    except ValueError:
        return None


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """An argparse type: a number greater than 0."""

    def parse(text: str) -> float:
        number = parse_number(kind, text)
        if number is None or not 0 < number < float("inf"):
            what = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"must be a {what} greater than 0, not '{text}'")
        return number

    return parse


def at_least(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number, `least` or more, that fits 32 bits."""

    def parse(text: str) -> int:
        number = parse_number(int, text)
        if number is None or number < least:
            raise argparse.ArgumentTypeError(f"must be a whole number, {least} or more, not '{text}'")
        if number >= 1 << 31:
            raise argparse.ArgumentTypeError(f"must be at most {(1 << 31) - 1}, not '{text}'")
        return int(number)

    return parse
