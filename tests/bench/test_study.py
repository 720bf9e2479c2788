"""The study's verdicts, and its page, which nobody typed."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study", ROOT / "benchmarks/study.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["study"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("gains", "paper", "verdict"),
    [
        ((2.0, 2.2, 2.4), 1.0, "agrees"),
        ((-2.0, -2.2, -2.4), 1.0, "disagrees"),
        (
            (1.0, 2.0, 4.0),
            1.0,
            "not told apart from no change",
        ),  # 2.65 standard errors; three seeds ask for 4.30
        ((2.0, 2.2, 2.4), 0.0, "the paper saw no change"),
        ((3.0,), 1.0, "not told apart from no change"),
    ],
)
def test_a_gain_counts_only_if_it_exceeds_the_noise_of_seeds(
    study, gains, paper: float, verdict: str
) -> None:  # type: ignore[no-untyped-def]
    assert study.verdict(study.Figure(gains), paper) == verdict


def test_gains_are_paired_by_seed(study) -> None:  # type: ignore[no-untyped-def]
    steps = {name: study.Figure((10.0 + k, 20.0 + k, 60.0 + k)) for k, name in enumerate(study.PAPER)}
    for line in study.verdicts(steps):
        assert line["gain"] == pytest.approx(1) and line["error"] == pytest.approx(0)


def test_the_page_shows_the_results(study) -> None:  # type: ignore[no-untyped-def]
    values = json.loads((ROOT / "benchmarks/results/study.json").read_text())
    found = study.restored(values)
    assert json.loads(json.dumps(study.plain(found, values["setting"]))) == values
    assert study.markdown(found, values["setting"]) == (ROOT / "docs/study.md").read_text()
