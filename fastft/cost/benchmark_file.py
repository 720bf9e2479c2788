"""Read a benchmark file and check what reports and costs use of it. The schema is docs/bench-schema.md."""

import json
from pathlib import Path
from typing import Any

from beton_tools.base.errors import UserError
from beton_tools.base.typed_json import UNSET, Document, Number, Object, Unset, check
from beton_tools.base.user_files import read_user_text

MAX_BYTES = 256 << 20


class _Ratio(Document):
    median: Number
    min: Number
    max: Number


class _Contender(Document):
    """With figures, or with the reason why it did not run."""

    name: str
    median: Number | Unset = UNSET
    min: Number | Unset = UNSET
    max: Number | Unset = UNSET
    rounds: list[Number] | Unset = UNSET
    ratio: _Ratio | Unset = UNSET
    note: str | Unset = UNSET
    skipped: str | Unset = UNSET

    def __post_init__(self) -> None:
        if self.median is UNSET and self.skipped is UNSET:
            raise ValueError("a contender has neither 'median' nor 'skipped'")


class _Measure(Document):
    name: str
    unit: str
    contenders: list[_Contender]
    setting: Object | Unset = UNSET


class _File(Document):
    measures: list[_Measure]
    machine: Object | Unset = UNSET
    notes: list[Any] | Unset = UNSET
    date: str | Unset = UNSET
    command: str | Unset = UNSET


def read_bench(path: Path) -> dict[str, Any]:
    """The content of the file.

    Raises:
        UserError: missing, not JSON, or it does not follow the schema.
    """
    if not path.exists():
        raise UserError(f"benchmark file {path} does not exist; fastft bench writes one")
    text = read_user_text(path, MAX_BYTES, "a benchmark file (fastft bench writes one)")
    try:
        document = json.loads(text, parse_constant=_refuse)
        check("the file", document, _File)
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path} is not a benchmark file: {error}; fastft bench writes one") from None
    return document


def _refuse(constant: str) -> Any:
    raise ValueError(f"it contains {constant}, which is not a number")
