"""Compares what fastft does with the recorded items; record.py says what they are and how to record them again."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.golden.record import ITEMS, golden_file


class Tolerance(NamedTuple):
    """Largest relative difference of floats, and largest difference of values named top1, in percent."""

    floats: float
    top1: float = 0


EXACT = Tolerance(1e-9)
# losses depend on the CPU and its threads, and so may the class of an image whose outputs for two classes are nearly equal
TRAINED = Tolerance(1e-4, 100 / 32 + 1e-6)  # one of 32 validation images
SHOWN = 30  # differences


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize("name", ITEMS)
def test_nothing_has_changed(name, folder):
    new = json.loads(json.dumps(ITEMS[name](folder)))
    old = json.loads(golden_file(name).read_text(encoding="utf-8"))
    found = differences(old, new, TRAINED if name == "training" else EXACT)
    if found:
        pytest.fail(report(name, found), pytrace=False)


def report(name: str, found: list[str]) -> str:
    left_out = [f"... and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    lines = "\n".join(found[:SHOWN] + left_out)
    return f"{len(found)} differences:\n{lines}\nif intended: python -m tests.golden.record {name}"


def differences(old: Any, new: Any, tolerance: Tolerance, path: str = "") -> list[str]:
    """One text per difference: where it is, the recorded value, today's value."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = [f"{path}.{key}: recorded, now missing" for key in old if key not in new]
        found += [f"{path}.{key}: not recorded, now {json.dumps(new[key])}" for key in new if key not in old]
        pairs = [(f"{path}.{key}", old[key], new[key]) for key in old if key in new]
    elif isinstance(old, list) and isinstance(new, list):
        found = [f"{path}: {len(old)} entries, now {len(new)}"] if len(old) != len(new) else []
        pairs = [(f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(old, new, strict=False))]
    else:
        return [] if same(old, new, tolerance, path) else [f"{path}: {json.dumps(old)}, now {json.dumps(new)}"]
    return found + [text for where, a, b in pairs for text in differences(a, b, tolerance, where)]


def same(old: Any, new: Any, tolerance: Tolerance, path: str) -> bool:
    """Equal values of one type; floats nearly equal."""
    if type(old) is not type(new):
        return False
    if not isinstance(old, float):
        return bool(old == new)
    margin = tolerance.top1 if path.endswith("top1") else 0
    return math.isclose(old, new, rel_tol=tolerance.floats, abs_tol=margin)
