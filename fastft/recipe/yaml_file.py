"""Read the YAML files that users write: recipes, sweep files, and the recipe.yaml of a run directory.

Every scalar is returned as the text that stands in the file. YAML 1.1 would read off as False, 007 as 7 and 6e-4 as a text;
`fastft.recipe` knows the type of each option and converts the text itself.

Size, nesting and the size after expansion of aliases are limited, so that no file can exhaust memory or time.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from beton_tools.base.errors import UserError
from beton_tools.base.user_files import read_user_text

MAX_BYTES = 128 * 1024  # the longest file in rcp/ has 5 KB
MAX_DEPTH = 16  # sweep files have 4 levels
MAX_EXPANDED = 1_000_000  # nodes and characters, where every alias counts as much as what it stands for
# control characters and surrogates; not tab and newline, which block texts hold
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
PARSE_ERRORS = (yaml.YAMLError, ValueError, OverflowError)  # PyYAML lets chr() and int() fail on some escapes
_LINE_BREAK = re.compile(r"[\t\n\u2028\u2029]")


def read_yaml(path: Path, expected: str) -> Mapping[str, Any]:
    """The mapping that the file holds; values are texts, lists and mappings.

    expected: what the file should be, for error messages, such as "a recipe (YAML)".

    Raises:
        UserError: not a regular file, too large, not UTF-8, not valid YAML, a key that appears twice, control characters,
            nesting or aliases beyond the limits, or no mapping.
    """
    text = read_user_text(path, MAX_BYTES, expected)
    try:
        document = _parse(text)
    except PARSE_ERRORS as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} must hold 'key: value' lines; give {expected}")
    return document


@lru_cache(maxsize=64)  # the rows of a table are read from the same files
def _parse(text: str) -> Any:
    """The document, which callers must not modify."""
    _check_limits(text)
    return yaml.load(text, _TextLoader)


class _TextLoader(yaml.BaseLoader):
    """Scalars stay texts; mappings have scalar keys, each once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    problem="a key must be a text", problem_mark=key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key '{key.value}' appears twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _check_limits(text: str) -> None:
    """Raise ValueError if the document is too deep, too large after expansion of aliases, or holds control characters.

    Works on parser events, which PyYAML produces without recursion; composing and constructing recurse.
    """
    anchored: dict[str, int] = {}  # anchor -> expanded size of its complete node
    # (anchor, expanded size so far), the document outermost
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=yaml.BaseLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) - 1 > MAX_DEPTH:
                raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
        elif isinstance(event, yaml.ScalarEvent):
            _refuse_control_characters(event)
            anchor, size = event.anchor, 1 + len(event.value)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchored:
                raise ValueError(f"the alias *{event.anchor} stands for nothing, or for a part of itself")
            anchor, size = None, anchored[event.anchor]
        else:
            continue
        if anchor is not None:
            anchored[anchor] = size
        parent, total = open_nodes[-1]
        if total + size > MAX_EXPANDED:
            raise ValueError("too large once its aliases are expanded")
        open_nodes[-1] = (parent, total + size)


def one_line(text: str) -> str:
    """The text without the newlines at its end, which block texts have.

    Raises:
        ValueError: it has several lines, or control characters, which paths, recipe.yaml and error messages cannot hold.
    """
    line = text.rstrip("\n")
    if CONTROL.search(line) or _LINE_BREAK.search(line):
        raise ValueError("several lines or control characters")
    return line


def _refuse_control_characters(event: yaml.ScalarEvent) -> None:
    found = CONTROL.search(event.value)
    if found:
        raise ValueError(f"it holds the control character {found[0]!a}")
