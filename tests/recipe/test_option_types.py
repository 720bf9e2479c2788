"""A type checker reads the options of `fastft.fit` as the schema declares them."""

import subprocess
import sys
import typing
from pathlib import Path

import pytest

from fastft.recipe import SECTIONS, option_fields, option_types
from fastft.recipe.check import OptionChecker

GOOD = """
import fastft

fastft.fit(
    "photos", data={"train": "pics", "workers": 2}, model="timm/test_vit", augment={"hflip": 0, "policy": "3aug"},
    optim={"lr": "auto"}, schedule={"epochs": 3, "budget": "10m"}, ema={"horizon": None}, train={"device": "cpu"},
)
"""
WRONG = ('augment={"hflipp": 0}', 'augment={"hflip": "often"}', 'train={"device": "gpu"}', "lerning_rate=1e-3")


def test_every_option_of_the_schema_has_a_type_that_the_schema_accepts():
    for name, field in option_fields().items():
        section, _, option = name.partition(".")
        if section == "about":
            continue
        typed = getattr(option_types, f"{SECTIONS[section].__name__}Options")
        hint = typing.get_type_hints(typed)[option]
        checker = OptionChecker(field, typing.get_type_hints(SECTIONS[section])[option])
        parts = typing.get_args(hint) or (hint,)
        words = [
            word
            for part in (hint, *parts)
            if typing.get_origin(part) is typing.Literal
            for word in typing.get_args(part)
        ]
        assert set(words) >= set(checker.choices), name
        for word in words:
            assert checker.check(word) == word, name
        assert (type(None) in parts) == checker.optional, name


@pytest.mark.slow
def test_mypy_finds_a_misspelt_option_a_wrong_type_and_a_wrong_choice(tmp_path):
    lines = [f'fastft.fit("photos", {argument})' for argument in WRONG]
    (tmp_path / "script.py").write_text(GOOD + "\n".join(lines) + "\n")
    command = [sys.executable, "-m", "mypy", "--config-file=", "--follow-imports=silent", "--ignore-missing-imports"]
    ended = subprocess.run([*command, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert "no issues" not in ended.stdout and "import-untyped" not in ended.stdout
    first = GOOD.count("\n") + 1
    numbers = {
        int(line.split(":")[1])
        for line in ended.stdout.splitlines()
        if line.startswith("script.py") and " error: " in line
    }
    assert numbers == set(range(first, first + len(WRONG))), ended.stdout


def test_the_package_says_that_it_is_typed():
    assert all(Path(package, "py.typed").exists() for package in ("fastft", "beton_tools"))
