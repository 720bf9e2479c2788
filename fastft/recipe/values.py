"""Values that are written as texts: durations (45m, 2d), and values by epoch.

Values by epoch are `0:160,24:224` (steps) or `0:160-24:224` (a linear ramp).
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from beton_tools.base.errors import UserError

FORM = "epoch:value steps from epoch 0 on (- for a ramp)"
MAX_SEGMENTS = 64
_PART = re.compile(r"(\d{1,6}):(\d{1,6}(?:\.\d{1,6})?)(?:-(\d{1,6}):(\d{1,6}(?:\.\d{1,6})?))?")

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd])")


def parse_duration(text: str, option: str) -> float:
    """Seconds. option: what the user set, for the message. Raises UserError: not a number greater than 0 with a unit."""
    found = _DURATION.fullmatch(text.strip())
    seconds = float(found[1]) * SECONDS[found[2]] if found else 0.0
    if seconds <= 0:
        raise UserError(f"{option} is {text!r}; it must be a duration such as 90s, 45m, 1.5h or 2d")
    return seconds


@dataclass(frozen=True)
class Segment:
    """From epoch `first` on `value`; in a ramp the value changes linearly to `end_value` at epoch `end`."""

    first: int
    value: float
    end: int
    end_value: float

    def at(self, epoch: int) -> float:
        if epoch >= self.end:
            return self.end_value
        return self.value + (self.end_value - self.value) * (epoch - self.first) / (self.end - self.first)


@dataclass(frozen=True)
class EpochValues:
    """A value for every epoch; the last one holds until the end."""

    segments: tuple[Segment, ...]

    def at(self, epoch: int) -> float:
        return next(s for s in reversed(self.segments) if s.first <= epoch).at(epoch)

    @property
    def last(self) -> float:
        return self.segments[-1].end_value

    @property
    def last_change(self) -> int:
        """The epoch from which on the value is constant."""
        return self.segments[-1].end

    @property
    def values(self) -> list[float]:
        """The values as written."""
        return [value for s in self.segments for value in (s.value, s.end_value)]


@lru_cache(maxsize=256)
def epoch_values(text: str) -> EpochValues:
    """Parse values by epoch.

    Raises ValueError: another form, a first epoch that is not 0, or epochs that do not increase.
    """
    parts = [_PART.fullmatch(part) for part in text.replace(" ", "").split(",")]
    if len(parts) > MAX_SEGMENTS or None in parts:
        raise ValueError(FORM)
    segments = [_segment(*part.groups()) for part in parts if part is not None]
    epochs = [s.first for s in segments]
    bounds = [(s.end, after) for s, after in zip(segments, epochs[1:], strict=False)]
    if epochs[0] != 0 or epochs != sorted(set(epochs)) or any(end > after for end, after in bounds):
        raise ValueError("epochs must begin at 0 and increase")
    return EpochValues(tuple(segments))


def _segment(first: str, value: str, end: str | None, end_value: str | None) -> Segment:
    begin, start = int(first), float(value)
    if end is None or end_value is None:
        return Segment(begin, start, begin, start)
    if int(end) <= begin:
        raise ValueError("a ramp must end after it begins")
    return Segment(begin, start, int(end), float(end_value))
