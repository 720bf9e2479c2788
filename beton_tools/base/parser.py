"""Argument parsing for the `fastft` and `beton` commands: one-line errors and numeric argument types."""

import argparse
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from beton_tools.base.console import EXIT_BAD_INPUT, printable
from beton_tools.base.errors import UserError

SIMILAR = 0.75  # lowest similarity at which an argument is suggested
REQUIRED = "the following arguments are required: "  # argparse's words
# arguments of commands -> other names for them. The first argument in this order that a command takes is suggested
OTHER_FLAGS = {
    flag: names.split()
    for flag, names in {
        "out": "o output output_dir output_path output_file out_dir save_dir save_path destination dst",
        "csv": "o out output output_path output_file results_file save_csv save_txt",
        "gpus": "devices num_gpus n_gpus num_devices nproc_per_node world_size",
        "device": "accelerator cuda gpu gpu_id use_gpu devices",
        "data": "dataset data_dir data_path source src input val_data val_dir val_split split test_data test_dir",
        "images": "data dataset data_dir data_path source",
        "min-probability": "conf conf_thres confidence min_confidence threshold",
        "topk": "k num_predictions",
        "flip-average": "tta",
        "workers": "num_workers j jobs threads num_proc",
        "max-resolution": "size resize max_size img_size image_size",
        "price": "price_per_hour cost_per_hour hourly_price",
    }.items()
}


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    _words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words = sys.argv[1:] if args is None else args
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> Any:
        if message.startswith(REQUIRED):
            lacking = message.removeprefix(REQUIRED).split(", ")
            given = [word.partition("=")[0] for word in self._words if word.startswith("-")]
            meant = {flag: known_argument(self, flag.lstrip("-")) for flag in given}
            if near := [flag for flag in given if meant[flag] in lacking]:
                message = f"unrecognized argument {near[0]}. Did you mean {meant[near[0]]}?"
        help = "" if message.endswith("?") else f". See {self.prog} --help"
        self.exit(EXIT_BAD_INPUT, printable(f"{self.prog}: {message}{help}") + "\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            near = get_close_matches(str(value), action.choices, 1)
            choose = f"Did you mean {near[0]}?" if near else f"Choose from {', '.join(map(str, action.choices))}"
            raise argparse.ArgumentError(action, f"'{value}' is not known. {choose}")


def known_argument(parser: argparse.ArgumentParser, name: str) -> str | None:
    """Return the flag of the command that another library calls `name`, or that is spelt alike. None if there is none."""
    return renamed_argument(parser, name) or similar_argument(parser, name)


def renamed_argument(parser: argparse.ArgumentParser, name: str) -> str | None:
    own = {flag for flag, action in parser._option_string_actions.items() if action.dest != "overrides"}
    flags = (f"--{flag}" for flag, names in OTHER_FLAGS.items() if name.replace("-", "_") in names)
    return next((flag for flag in flags if flag in own), None)


def similar_argument(parser: argparse.ArgumentParser, name: str) -> str | None:
    flags = [flag[2:] for flag in parser._option_string_actions if "." not in flag]
    return next((f"--{flag}" for flag in get_close_matches(name, flags, 1, SIMILAR)), None)


def suggestion(parser: argparse.ArgumentParser, name: str) -> str | None:
    flag = known_argument(parser, name)
    return flag and f"Did you mean {flag}?"


def refuse_unknown(
    parser: argparse.ArgumentParser,
    words: Sequence[str],
    hint: Callable[[argparse.ArgumentParser, str], str | None] = suggestion,
) -> None:
    """Refuse what the parser did not know.

    Args:
        words: what the parser left over.
        hint: what to say of the unknown argument with this name, which has no hyphens in front.

    Raises UserError if there are such words. It lists all of them, each with its hint.
    """
    hints = dict[str, str | None]()
    for word in words:
        name, equals, _ = word.partition("=")
        is_flag = name.startswith("-") and parse_number(float, name) is None
        if is_flag or equals:
            hints[name] = hint(parser, name.lstrip("-"))
        elif not hints:  # not the value of an unknown flag
            hints[name] = None
    if len(hints) == 1:
        (name, said), *_ = hints.items()
        raise UserError(f"unrecognized argument {name}. {said or f'See {parser.prog} --help'}")
    if hints:
        listed = ", ".join(f"{name} ({said})" if said else name for name, said in hints.items())
        raise UserError(f"unrecognized arguments {listed}. See {parser.prog} --help")


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
