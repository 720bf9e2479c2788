"""Parts of a conversion.

Each part is its own file, and their samples one after another are the samples of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from beton_tools.base.errors import UserError

_MAX_DIGITS = 6  # digits in the number of parts: a million, more than any cluster has jobs
_SHOWN = 40  # characters shown from a wrong value


@dataclass(frozen=True)
class Part:
    """One of `count` parts. Numbers begin with 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Part:
        """Parse a text such as "3/16". Raises UserError if it is not two numbers, or if there is no such part."""
        words = text.split("/")
        if len(words) == 2 and all(word.isascii() and word.isdecimal() and len(word) <= _MAX_DIGITS for word in words):
            part = cls(int(words[0]), int(words[1]))
            if 1 <= part.number <= part.count:
                return part
        raise UserError(
            f"--part cannot be {text[:_SHOWN]}. Give NUMBER/COUNT, such as 1/16 to 16/16, and at most {_MAX_DIGITS} digits each"
        )

    def path(self, whole: Path) -> Path:
        """Return this part's file: train.beton -> train-03-of-16.beton. The names sort in the order of the parts."""
        number = f"{self.number:0{len(str(self.count))}}"
        return whole.with_name(f"{whole.stem}-{number}-of-{self.count}{whole.suffix}")

    def take(self, order: np.ndarray) -> np.ndarray:
        """Select this part of the whole conversion's images.

        Parts are contiguous, and their sizes differ by at most one.

        Raises:
            UserError: There are fewer images than parts.
        """
        if len(order) < self.count:
            raise UserError(f"--part {self}: there are only {len(order)} images. Use no more parts than images")
        begin, end = (len(order) * k // self.count for k in (self.number - 1, self.number))
        return order[begin:end]
