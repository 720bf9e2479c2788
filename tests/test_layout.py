"""Promises about the layout of the packages that CONTRIBUTING.md describes; the order of the layers is in `make lint`."""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
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
