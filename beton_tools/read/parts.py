"""Divided conversions: which parts belong together, and which are missing.

Each part is a file. Their samples, one part after another, are the samples of the whole conversion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path

import numpy as np

from beton_tools.base.errors import UserError

_MAX_DIGITS = 6  # digits in the number of parts: a million, more than any cluster has jobs
_SHOWN = 40  # characters shown from a wrong value
_LISTED = 10  # missing parts to list


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
        """Return this part's file: train.beton -> train-03-of-16.beton. Sorting the names sorts the parts."""
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


@dataclass(frozen=True)
class Conversion:
    """What a file's manifest says about the conversion that it belongs to.

    Attributes:
        dataset: Hash that all parts share. None in version 1 manifests.
        options: The conversion's options, without the part.
        part: Which part the file is, or None if it is a whole conversion.
        checksum: Hash over the file's bytes.
    """

    dataset: str | None
    options: tuple[tuple[str, str | bool | int | None], ...]
    part: Part | None
    checksum: str


def list_missing(parts: Sequence[Part]) -> str:
    """List the first parts that are missing, and how many more are missing: "2/16, 5/16 and 3 more".

    The text is "" if none are missing, or if the parts do not belong to one division.
    """
    counts = {part.count for part in parts}
    if len(counts) != 1:
        return ""
    (count,) = counts
    present = {part.number for part in parts}
    missing = (str(Part(k, count)) for k in range(1, count + 1) if k not in present)
    listed = ", ".join(islice(missing, _LISTED))
    more = count - len(present) - _LISTED
    return f"{listed} and {more:,} more" if more > 0 else listed


def refuse_other_parts(files: Mapping[Path, Conversion | None]) -> None:
    """Refuse files that do not divide their conversions, so that images would be missing or count twice.

    Several conversions may be used together if each has all its parts. Files with a version 1 manifest are compared only
    by their options.

    Raises:
        UserError: The parts belong to different conversions or divisions, or a part is given beside the whole file or
            beside an equal part.
    """
    named = {path: conversion for path, conversion in files.items() if conversion is not None}
    by_options = any(conversion.dataset is None for conversion in named.values())
    keys = {path: conversion.options if by_options else conversion.dataset for path, conversion in named.items()}
    groups: dict[object, dict[Path, Conversion]] = {}
    for path, conversion in named.items():
        groups.setdefault(keys[path], {})[path] = conversion
    if not by_options:
        for group in groups.values():
            _refuse_overlap(group)
    counts = {path: conversion.part.count for path, conversion in named.items() if conversion.part is not None}
    incomplete = next((path for path, count in counts.items() if len(groups[keys[path]]) < count), None)
    if incomplete is None:
        return
    other = next((path for path in counts if keys[path] != keys[incomplete]), None)
    if other is not None:
        raise UserError(
            f"{other} and {incomplete} are parts of different conversions{_difference(named[other], named[incomplete])}, "
            "so images would be missing and others count twice. Convert all parts again from the same images with the same "
            "options"
        )


def _refuse_overlap(files: Mapping[Path, Conversion]) -> None:
    """Raise UserError if files from one conversion have images in common."""
    pairs = combinations(files.items(), 2)
    for (path, one), (later, other) in pairs:
        if one.part is None and other.part is None and one.checksum != other.checksum:
            continue  # other images with the same names and sizes, such as bitmaps
        if None in (one.part, other.part) or one.part == other.part or one.part.count != other.part.count:  # type: ignore[union-attr]
            raise UserError(f"{later} has images that {path} has too: both are from the same conversion. Leave one out")


def _difference(first: Conversion, second: Conversion) -> str:
    """Return the option that differs, for a message: " (shuffle_seed None and 1)"."""
    pairs = [
        f"{name} {dict(first.options).get(name)} and {value}"
        for name, value in second.options
        if dict(first.options).get(name) != value
    ]
    return f" ({', '.join(pairs)})" if pairs else ""
