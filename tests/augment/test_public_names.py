"""`fastft.augment` exports what it lists, with types that mypy sees."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastft import augment


def test_every_public_name_can_be_imported() -> None:
    for name in augment.__all__:
        assert getattr(augment, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        augment.nonsense  # noqa: B018


@pytest.mark.slow
def test_mypy_sees_a_type_for_every_public_name(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    lines = [f"reveal_type(augment.{name})" for name in augment.__all__]
    program = tmp_path / "names.py"
    program.write_text("\n".join(["from fastft import augment", *lines]) + "\n")
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), str(program)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    types = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert len(types) == len(augment.__all__), done.stdout + done.stderr
    untyped = [n for n, t in zip(augment.__all__, types, strict=True) if t == "Any" or "-> Any" in t]
    assert not untyped
