"""Read the YAML files that users write: recipes, sweep files, and the recipe.yaml in a run directory.

Every scalar is returned as the text in the file. YAML 1.1 would read off as False, 007 as 7 and 6e-4 as a text.
`fastft.recipe` knows the type of each option and converts the text itself.

Size and nesting are limited, and values are shown shortened, so that no file can exhaust memory or time.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from reprlib import Repr
from typing import Any

import yaml

from beton_tools.base.errors import UserError
from beton_tools.base.user_files import read_user_text

MAX_RECIPE_BYTES = 128 * 1024  # the longest file in rcp/ has 5 KB
MAX_DEPTH = 16  # sweep files have 4 levels
MAX_SHOWN = 60  # characters shown of a wrong value in an error message
# control characters and surrogates, but not tab and newline, which block texts hold
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
PARSE_ERRORS = (yaml.YAMLError, ValueError, OverflowError)  # PyYAML lets chr() and int() fail on some escapes
_LINE_BREAK = re.compile(r"[\t\n\u2028\u2029]")


def read_yaml(path: Path, expected: str) -> Mapping[str, object]:
    """Read the mapping in a file. Its values are texts, lists and mappings.

    Args:
        expected: what the file should be, for error messages, such as "a recipe (YAML)".

    Raises:
        UserError: not a regular file, too large, not UTF-8, not valid YAML, a key that appears twice, control
            characters, nesting beyond the limit, or no mapping.
    """
    text = read_user_text(path, MAX_RECIPE_BYTES, expected)
    try:
        document = _parse(text)
    except PARSE_ERRORS as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} must hold 'key: value' lines. Give {expected}")
    return document


@lru_cache(maxsize=64)  # the rows of a table are read from the same files
def _parse(text: str) -> Any:
    """Parse a document. Callers must not modify it, because an alias is the same object as what it stands for."""
    return yaml.load(text, _TextLoader)


class _TextLoader(yaml.BaseLoader):
    """Keeps scalars as texts without control characters.

    Mappings have scalar keys, each once, and nesting is limited.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH + 1:  # a scalar is a level of its own
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, yaml.ScalarNode) and (control := CONTROL.search(node.value)):
            raise ValueError(f"it holds the control character {control[0]!a}")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            problem = None
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key must be a text"
            elif key.value in seen:
                problem = f"the key '{key.value}' appears twice"
            if problem is not None:
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def one_line(text: str) -> str:
    """Return the text without the newlines at its end, which block texts have.

    Raises:
        ValueError: it has several lines or control characters, which paths, recipe.yaml and error messages cannot hold.
    """
    line = text.rstrip("\n")
    if CONTROL.search(line) or _LINE_BREAK.search(line):
        raise ValueError("several lines or control characters")
    return line


_REPR = Repr()
_REPR.maxstring = _REPR.maxother = MAX_SHOWN


def shown(value: Any) -> str:
    """Show a value in an error message, escaped, and cut if it is long.

    Nested aliases may stand for billions of nodes.
    """
    text = _REPR.repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."
