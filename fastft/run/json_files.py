"""The JSON files in a run directory. They are written from typed objects with the format's version, and read into them."""

import json
import os
from pathlib import Path
from typing import TypeVar

import msgspec

from beton_tools.base.atomic import write_text
from beton_tools.base.errors import UserError
from beton_tools.base.typed_json import Document, check, check_version
from beton_tools.base.user_files import read_user_text

MAX_RUN_FILE_BYTES = 1 << 30  # per file in a run directory. A long run logs some megabytes
VERSION = 1  # all these formats have this version

T = TypeVar("T", bound=Document)


def as_json(document: Document) -> str:
    return json.dumps({"version": VERSION, **msgspec.to_builtins(document)}, indent=1)


def write_document(path: Path, document: Document) -> None:
    write_text(path, as_json(document))


def read_document(path: Path, kind: type[T], advice: str) -> T | None:
    """Read a JSON file. None if there is none.

    Args:
        advice: ends the message, such as "delete it and run again".

    Raises:
        UserError: the file cannot be read, states another format version, or does not have this type.
    """
    if not os.path.lexists(path):
        return None
    try:
        document = json.loads(read_user_text(path, MAX_RUN_FILE_BYTES, f"the {path.name} of a run, or {advice}"))
        if isinstance(document, dict):
            check_version(str(path), document, VERSION)
        found: T = check(path.name, document, kind)
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}. {advice[0].upper()}{advice[1:]}") from None
    return found
