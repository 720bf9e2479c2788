"""Durations as people write them: 90s, 45m, 1.5h, 2d."""

import re

from beton_tools.base.errors import UserError

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd])")


def parse_duration(text: str, option: str) -> float:
    """Seconds. option: what the user set, for the message.

    Raises:
        UserError: not a number greater than 0 with a unit.
    """
    found = _DURATION.fullmatch(text.strip())
    seconds = float(found[1]) * SECONDS[found[2]] if found else 0.0
    if seconds <= 0:
        raise UserError(f"{option} is {text!r}; it must be a duration such as 90s, 45m, 1.5h or 2d")
    return seconds
