"""Parts that the pages for several runs and for several benchmark results share: colours, and the list of differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COLOURS = 6  # in style.css, as file-1 to file-6


@dataclass(frozen=True)
class Fact:
    """A row in the table of what the compared things are: a name, and the value for each of them."""

    name: str
    values: Sequence[object]

    @property
    def differs(self) -> bool:
        return any(value != self.values[0] for value in self.values)


def colour(number: int) -> str:
    """Return the CSS class of the compared thing with this number, from 0."""
    return f"file-{1 + number % COLOURS}"


def facts(columns: Sequence[Mapping[str, object]], missing: object = "–") -> list[Fact]:
    """Return a row for each name that one of the columns has. A column is what is known about one thing."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [Fact(name, [column.get(name, missing) for column in columns]) for name in names]
