"""The documentation: dead links are errors, references list what there is; the layout that CONTRIBUTING.md describes."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fastft.cost.price import CostQuery, price_recipes
from fastft.recipe import load_recipe

ROOT = Path(__file__).parents[1]
SCHEMA = (ROOT / "docs/bench-schema.md").read_text()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A copy of what `make docs` reads."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    return tmp_path


def make_docs(site: Path) -> subprocess.CompletedProcess[str]:
    """The Makefile's own command."""
    line = re.search(r"^\t(NO_MKDOCS.*)$", (ROOT / "Makefile").read_text(), re.M)
    command = line[1].replace("$(BIN)", shlex.quote(str(Path(sys.executable).parent)))
    return subprocess.run(command, shell=True, cwd=site, capture_output=True, text=True)


@pytest.mark.slow  # make docs builds the pages in CI
def test_dead_links_and_a_page_outside_the_navigation_are_errors(site):
    wrong = {"a file](../rcp/no.yaml)": "'../rcp/no.yaml'", "a heading](faq.md#no)": "not contain an anchor '#no'"}
    (site / "docs" / "lost.md").write_text("# A page\n")
    with (site / "docs" / "index.md").open("a") as file:
        file.write("".join(f"\n[{link}\n" for link in wrong))
    done = make_docs(site)
    assert done.returncode != 0
    assert all(warning in done.stderr for warning in (*wrong.values(), 'not included in the "nav"'))


@pytest.mark.parametrize(
    ("text", "correction"),
    [("recieve", "receive"), ("normalized colors", "colours"), ("an optimizer of torch on a disk", "")],
)
def test_misspelt_and_american_words_are_errors(tmp_path, text, correction):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text(f"{text}\n")
    command = [sys.executable, str(ROOT / "docs/spelling.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == (1 if correction else 0), done.stderr
    assert correction in done.stdout


def row(begin: str) -> str:
    return next(line for line in SCHEMA.splitlines() if line.startswith(begin))


def test_every_unit_of_the_results_is_documented():
    measures = json.loads((ROOT / "benchmarks/results/all.json").read_text())["measures"]
    assert {m["unit"] for m in measures} <= set(re.findall(r"`([^`]+)`", row("| `.unit`")))


def test_every_kind_of_line_in_metrics_is_documented():
    code = "".join(path.read_text() for room in ("train", "run") for path in (ROOT / "fastft" / room).glob("*.py"))
    kinds = set(re.findall(r"\.record\(\"(\w+)\"", code))
    assert "checkpoint" in kinds and kinds == set(re.findall(r"^\| `(\w+)` \| `", SCHEMA, re.M))


def test_every_key_of_a_cost_estimate_is_documented():
    priced = price_recipes([load_recipe(ROOT / "rcp/final_b16.yaml")], CostQuery("V100"))
    text = SCHEMA[SCHEMA.index("`fastft cost --json`") : SCHEMA.index("A run's `metrics.jsonl`")]
    assert priced["recipes"][0]["estimates"][0].keys() <= set(re.findall(r"`(\w+)`", text))


MODULES = [path for package in ("fastft", "beton_tools") for path in (ROOT / package).rglob("*.py")]


def test_no_file_name_appears_twice_in_the_packages():
    count = Counter(path.name for path in MODULES if path.name != "__init__.py")
    assert len(count) > 100
    assert [name for name, times in count.items() if times > 1] == []


def test_every_folder_is_described_in_contributing():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in MODULES if path.parent.parent == ROOT / "fastft"}
    assert [name for name in sorted(folders) if f"{name}/" not in text] == []


def test_no_comment_hangs_on_a_closing_bracket():
    """The formatter moves the comment of a line that is too long there, away from what it is about."""
    hanging = re.compile(r"^\s*[)\]}]+[:,]?  # (?!fmt:|type:|noqa)")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for package in ("fastft", "beton_tools", "benchmarks", "tests")
        for path in sorted((ROOT / package).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if hanging.match(line)
    ]
    assert found == []


def test_no_docstring_begins_with_a_word_that_is_read_twice():
    """`Of the run: ...` and `Whether it fits.` are sentences without a subject; `The parts of ...` and `True if ...` are not."""
    begin = re.compile(r'"""(Of|That|What|By|As|Whether) ')
    folders = ("fastft", "beton_tools", "benchmarks", "examples", "tests")
    found = {path for folder in folders for path in (ROOT / folder).rglob("*.py") if begin.search(path.read_text())}
    assert found <= {Path(__file__)}, found
