"""Parts of a conversion: each is a file of its own, and their samples one after another are those of the whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from beton_tools.base.errors import UserError

_MAX_DIGITS = 6  # of the number of parts: a million, more than any cluster has jobs
_SHOWN = 40  # characters of a wrong value


@dataclass(frozen=True)
class Part:
    """One of `count` parts; numbers begin with 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Part:
        """From "3/16". Raises UserError: not two numbers, or no such part."""
        words = text.split("/")
        if len(words) == 2 and all(word.isascii() and word.isdecimal() and len(word) <= _MAX_DIGITS for word in words):
            part = cls(int(words[0]), int(words[1]))
            if 1 <= part.number <= part.count:
                return part
        raise UserError(
            f"--part cannot be {text[:_SHOWN]}; give NUMBER/COUNT, such as 1/16 to 16/16, and at most {_MAX_DIGITS} digits each"
        )

    def path(self, whole: Path) -> Path:
        """The file of this part: train.beton -> train-03-of-16.beton. The names sort in the order of the parts."""
        number = f"{self.number:0{len(str(self.count))}}"
        return whole.with_name(f"{whole.stem}-{number}-of-{self.count}{whole.suffix}")

    def take(self, order: np.ndarray) -> np.ndarray:
        """This part of the images of the whole, contiguous; sizes differ by at most one.

        Raises UserError: there are fewer images than parts.
        """
        if len(order) < self.count:
            raise UserError(f"--part {self}: there are only {len(order)} images; use at most as many parts")
        begin, end = (len(order) * k // self.count for k in (self.number - 1, self.number))
        return order[begin:end]
