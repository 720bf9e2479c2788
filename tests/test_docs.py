"""The documentation: dead links are errors, and the reference of files lists what they hold."""

import json
import re
import shlex
import shutil
import subprocess
import sys
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
    assert line is not None
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
