"""A table for the terminal, with the options that nobody gave: their values, and the reasons."""

from collections.abc import Sequence

from rich.console import Console

from beton_tools.base.console import compact_table, print_table
from fastft.recipe import Choice
from fastft.recipe.check import show_value

SAME = "for the same reason"  # instead of a sentence that the row above has


def print_choices(choices: Sequence[Choice], console: Console) -> None:
    """Print a row for each choice, or nothing if there are none."""
    if choices:
        above = ["", *(choice.reason for choice in choices)]
        rows = [
            [choice.option, show_value(choice.value), SAME if choice.reason == before else choice.reason]
            for choice, before in zip(choices, above, strict=False)
        ]
        print_table(compact_table(None, ["option", "value", "why"], rows, left=3), console)
