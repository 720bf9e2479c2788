"""The time split of a run: sums of the lines of its log, whatever interrupted it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastft.report.run_times import part_seconds, run_cost, time_split
from fastft.run.run_directory import Run, load_run
from tests.written import CHECKPOINT, EVALUATION, LOADER, STEPS, write_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return load_run(write_run(tmp_path / "run", "final_b16", 2))


def split(run: Run) -> dict[str, Any]:
    found = time_split(run)
    assert found is not None
    return found


def test_parts_are_sums_of_the_lines(run):
    """Evaluations and checkpoints too: those of an epoch that has no 'split' line yet are known all the same."""
    expected = {part: 2 * s for part, s in (STEPS | LOADER).items()}
    expected |= {"eval": 2 * EVALUATION, "checkpoint": 2 * CHECKPOINT}
    run = replace(run, splits=[])
    assert part_seconds(run) == pytest.approx(expected)
    assert {r["key"]: r["seconds"] for r in split(run)["loop"]}["eval"] == pytest.approx(2 * EVALUATION)
    cost = run_cost(run, None, None)
    assert cost is not None
    assert {r["what"]: r["wall_seconds"] for r in cost["rows"]}["checkpoints"] == 2 * CHECKPOINT


def test_without_a_split_in_the_log_the_report_has_none(tmp_path):
    assert time_split(load_run(write_run(tmp_path / "run", "final_b16", 2, split=False))) is None
