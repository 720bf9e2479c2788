"""The time split of a run: sums of the lines of its log, whatever interrupted it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastft.report.run_report import render_run
from fastft.report.run_times import part_seconds, run_cost, time_split
from fastft.run.run_directory import Run, load_run
from tests.written import CHECKPOINT, EVALUATION, LOADER, STEPS, STEPS_PER_EPOCH, split_of, write_run

BATCH, WORLD = 2048, 8
DECODE = LOADER["decode"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return load_run(write_run(tmp_path / "run", "final_b16", 2))


def split(run: Run) -> dict[str, Any]:
    found = time_split(run)
    assert found is not None
    return found


def interrupted(run: Run, step: int, world: int = WORLD) -> Run:
    """The lines if a signal had come after `step`: the 'split' line of its epoch has the seconds of the steps since then."""
    start = run.starts[0] | {"step": step, "world_size": world}
    rest = {"seconds": split_of(STEPS_PER_EPOCH - step % STEPS_PER_EPOCH)}
    splits = [s | rest if s["epoch"] == step // STEPS_PER_EPOCH else s for s in run.splits]
    return replace(run, starts=[*run.starts, start], splits=splits)


@pytest.mark.parametrize(("device", "busy"), [("cuda", DECODE), ("cpu", DECODE + LOADER["augment"])])
def test_images_per_core_are_those_of_one_process_and_its_cores(run: Run, device: str, busy: float) -> None:
    """The log has the loader of one of eight processes; on a GPU, augmenting takes none of its cores."""
    run = replace(run, starts=[run.starts[0] | {"device_type": device}])
    assert split(run)["per_core"] == pytest.approx(STEPS_PER_EPOCH * BATCH / WORLD / busy)


@pytest.mark.parametrize("step", [STEPS_PER_EPOCH // 2, 100, STEPS_PER_EPOCH])
def test_an_interruption_does_not_change_rates(run: Run, step: int) -> None:
    """Within an interval, at its end, at an epoch's."""
    cut = split(interrupted(run, step))
    assert cut["per_core"] == pytest.approx(split(run)["per_core"])
    assert cut["needs"][0]["cores"] == pytest.approx(split(run)["needs"][0]["cores"])


def test_images_per_process_follow_the_world_size_of_the_time(run: Run) -> None:
    """Half of two epochs on eight GPUs, then on four, whose processes decode twice as many images in a step."""
    resumed = interrupted(run, STEPS_PER_EPOCH, world=4)
    images = STEPS_PER_EPOCH * (BATCH / 8 + BATCH / 4)
    assert split(resumed)["per_core"] == pytest.approx(images / (2 * DECODE))


def test_parts_are_sums_of_the_lines(run: Run) -> None:
    """Evaluations and checkpoints too: those of an epoch that has no 'split' line yet are known all the same."""
    expected = {part: 2 * s for part, s in (STEPS | LOADER).items()}
    expected |= {"eval": 2 * EVALUATION, "checkpoint": 2 * CHECKPOINT}
    run = replace(run, splits=[])
    assert part_seconds(run) == pytest.approx(expected)
    assert {r["key"]: r["seconds"] for r in split(run)["loop"]}["eval"] == pytest.approx(2 * EVALUATION)
    cost = run_cost(run, None, None)
    assert cost is not None
    assert {r["what"]: r["wall_seconds"] for r in cost["rows"]}["checkpoints"] == 2 * CHECKPOINT


def test_without_a_split_in_the_log_the_report_has_none(tmp_path: Path) -> None:
    assert time_split(load_run(write_run(tmp_path / "run", "final_b16", 2, split=False))) is None


def test_a_report_does_not_need_the_file_of_the_architecture(run: Run) -> None:
    moved = replace(run, recipe=run.recipe.with_option("model.arch", "gone.json"))
    assert split(moved)["needs"] == []
    page = render_run(moved)
    assert "Training process" in page and "What other GPUs would ask" not in page
    assert "What other GPUs would ask" in render_run(run)
