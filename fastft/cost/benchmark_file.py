"""Read a benchmark file and check what reports and costs use of it. The schema is docs/bench-schema.md."""

import json
from pathlib import Path
from typing import Any

from beton_tools.base.errors import UserError
from beton_tools.base.user_files import read_user_text
from fastft.recipe.rules import LIST, NUMBER, NUMBERS, OBJECT, TEXT, check_keys

MAX_BYTES = 256 << 20
FILE = {"measures": LIST, "machine": OBJECT, "notes": LIST, "date": TEXT, "command": TEXT}
MEASURE = {"name": TEXT, "unit": TEXT, "contenders": LIST, "setting": OBJECT}
RUN = {
    "name": TEXT,
    "median": NUMBER,
    "min": NUMBER,
    "max": NUMBER,
    "rounds": NUMBERS,
    "ratio": OBJECT,
    "note": TEXT,
}
NOT_RUN = {"name": TEXT, "skipped": TEXT}
RATIO = {"median": NUMBER, "min": NUMBER, "max": NUMBER}


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
        _check(document)
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path} is not a benchmark file: {error}; fastft bench writes one") from None
    return document


def _refuse(constant: str) -> Any:
    raise ValueError(f"it contains {constant}, which is not a number")


def _check(document: Any) -> None:
    check_keys("the file", document, FILE, FILE.keys() - {"measures"})
    for m, measure in enumerate(document["measures"], 1):
        check_keys(f"measure {m}", measure, MEASURE, {"setting"})
        for c, contender in enumerate(measure["contenders"], 1):
            where = f"measure {m}, contender {c}"
            if isinstance(contender, dict) and "median" not in contender and "skipped" in contender:
                check_keys(where, contender, NOT_RUN)
                continue
            check_keys(where, contender, RUN, RUN.keys() - {"name", "median"})
            if "ratio" in contender:
                check_keys(f"{where}, ratio", contender["ratio"], RATIO)
