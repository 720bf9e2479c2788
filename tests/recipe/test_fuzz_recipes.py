"""Any text is a recipe or table, or an error of one line: never another exception, and never a long wait."""

import re
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beton_tools.base.errors import UserError
from fastft.recipe import SECTIONS, load_recipe, option_fields
from fastft.recipe.recipe_file import RECIPES, TABLES
from fastft.recipe.tables import load_sweep
from tests import EXTENT

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
KEYS = [*option_fields(), *SECTIONS, *["extends", "title", "source", "base", "set", "rows", "label", "name", "paper"]]

printable = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | printable | st.sampled_from(TOKENS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
options = st.sampled_from(sorted(option_fields()))
rows = st.fixed_dictionaries(
    {"label": values},
    optional={
        "set": st.dictionaries(options, values, max_size=3), "recipe": values, "name": values, "number": values, "paper": values,
    },
)  # fmt: skip
tables = st.fixed_dictionaries(
    {"title": values, "source": values, "rows": st.lists(rows, max_size=3) | values},
    optional={"base": st.just("final_b16") | values, "set": values, "plot": values},
)
recipes = st.dictionaries(st.sampled_from([*SECTIONS, "extends"]), values, max_size=4)
overlays = st.dictionaries(options, values, max_size=4).map(
    lambda flat: {"extends": "final_b16"} | {key.split(".")[0]: {key.split(".")[1]: v} for key, v in flat.items()}
)


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


def dumped(document: object) -> str:
    try:
        return yaml.safe_dump(document)
    except yaml.YAMLError:
        return repr(document)


texts = mutated() | st.one_of(recipes, overlays, tables, values).map(dumped) | st.text(max_size=200)


def check(path: Path, text: str) -> None:
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


def fuzz(examples: int, derandomize: bool) -> settings:
    return settings(
        max_examples=examples,
        derandomize=derandomize,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )


@fuzz(300, derandomize=True)
@given(text=texts)
def test_any_text_is_a_recipe_or_an_error_of_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    check(tmp_path_factory.getbasetemp() / "x.yaml", text)


@pytest.mark.slow
@fuzz(int(2_000 * EXTENT), derandomize=False)
@given(text=texts)
def test_many_texts_are_recipes_or_errors_of_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    check(tmp_path_factory.getbasetemp() / "y.yaml", text)
