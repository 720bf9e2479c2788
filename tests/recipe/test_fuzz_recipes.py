"""Any text is a recipe or table, or an error of one line: never another exception, and never a long wait."""

import re
import time
from pathlib import Path

import timm  # noqa: F401 - before the clock starts: recipes name towers of timm
from hypothesis import strategies as st

from beton_tools.base.errors import UserError
from fastft.recipe import load_recipe
from fastft.recipe.recipe_file import RECIPES, TABLES
from fastft.recipe.tables import load_sweep
from tests.beton_tools.fuzzing import fuzz_target

LIMIT = 5  # seconds of this process for one file
FILES = [path for folder in (RECIPES, TABLES) for path in sorted(folder.glob("*.yaml"))]
# bases by their bare names: the mutated text lies in another folder
SEEDS = [re.sub(r"(?:\.\./)?(\w+)\.yaml", r"\1", path.read_text()) for path in FILES]
TOKENS = [
    "&a ", "*a", "[", "]", "{", "}", "? ", ": ", "- ", "| ", "> ", "%YAML 1.1\n", "---\n", "!!python/name:os.system ", "!<x>",
    "<<: *a", "extends: x.yaml\n", "extends: '.'\n", "rows:\n", "set: ", "base: x.yaml\n", "x.yaml[a]", "'", '"', "|\n  a\n  b\n",
    r'"\0"', r'"\ud800"', r'"\UFFFFFFFF"', r'"\n"', "1e308", ".inf", ".nan", "~", "-1", "9" * 400, "\t", "\0", "\x85", "\ufeff",
    "\u2028", "\ud800", "#", " " * 40 + "\n",
]  # fmt: skip
printable = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A recipe or table of fastft with a few pieces replaced."""
    text = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 30)))
        piece = draw(st.sampled_from(TOKENS) | printable | st.just(text[end : end + 50]))
        text = text[:start] + piece + text[end:]
    return text


def check(folder: Path, text: str) -> None:
    path = folder / "x.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    start = time.process_time()
    rows_of: list[str] = []
    try:
        rows_of = [row.title for row in load_sweep(path).rows]
    except UserError as error:
        assert "\n" not in str(error)
    for reference in [str(path), *(f"{path}[{title}]" for title in rows_of[:2])]:
        try:
            load_recipe(reference)
        except UserError as error:
            assert "\n" not in str(error)
    assert time.process_time() - start < LIMIT


test_any_text_is_a_recipe_or_an_error_of_one_line, test_many_texts = fuzz_target(
    check, mutated() | st.text(max_size=200)
)
