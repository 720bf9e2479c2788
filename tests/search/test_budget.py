"""A training is started only if it and the final one still fit; the time spent is remembered."""

import errno
import json
import math
import time
from pathlib import Path

import pytest
import torch

from beton_tools.base.errors import UserError
from fastft.search import budget as budget_module
from fastft.search.budget import Budget
from fastft.train.distributed import World

WORLD = World(0, 1, 0, torch.device("cpu"))
KEYS = ("a", "b", "c", "short", "long", "new")


def opened(path: Path, limit: float, **seconds: float) -> Budget:
    path.write_text(json.dumps({"seconds": seconds}))
    return Budget(path, limit, WORLD, KEYS)


def test_before_any_training_is_complete_one_is_tried(tmp_path: Path) -> None:
    assert opened(tmp_path / "tune.json", 10).fits("a", 1000, reserve=1000)
    assert not opened(tmp_path / "tune.json", 10, a=10).fits("a", 1000, reserve=0)


def test_a_later_training_is_reserved_for(tmp_path: Path) -> None:
    """10 s per epoch: 100 s are spent, one of 6 epochs and the last one of 50 take 560 s more."""
    for limit, fits in ((661, True), (659, False)):
        budget = opened(tmp_path / "tune.json", limit, a=100)
        budget.finished("a", 10)
        assert budget.fits("b", 6, reserve=50) is fits


def test_nothing_is_reserved_for_what_cannot_fit_in_any_case(tmp_path: Path) -> None:
    budget = opened(tmp_path / "tune.json", 300, a=100)
    budget.finished("a", 10)
    assert budget.fits("b", 20, reserve=50) and not budget.fits("b", 21, reserve=50)


def test_an_interrupted_training_needs_only_its_rest(tmp_path: Path) -> None:
    budget = opened(tmp_path / "tune.json", 205, a=100, b=60)
    budget.finished("a", 10)
    assert budget.estimate("b", 10) == pytest.approx(40)
    assert budget.fits("b", 10, reserve=0) and not budget.fits("c", 10, reserve=0)


def test_estimates_are_from_the_longest_trainings(tmp_path: Path) -> None:
    """The start counts more in short ones."""
    budget = opened(tmp_path / "tune.json", math.inf, short=20, long=120)
    budget.finished("short", 1)
    budget.finished("long", 12)
    assert budget.estimate("new", 5) == pytest.approx(50)


def test_time_is_remembered_also_after_an_error(tmp_path: Path) -> None:
    budget = Budget(tmp_path / "tune.json", 100, WORLD, KEYS)
    with pytest.raises(KeyError), budget.timed("a"):
        raise KeyError
    again = Budget(tmp_path / "tune.json", 100, WORLD, KEYS)
    assert 0 < again.spent == budget.spent
    with again.timed("a"):
        pass
    assert again.spent > budget.spent


def test_time_is_remembered_by_a_process_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget_module, "SAVE_SECONDS", 0.01)
    with Budget(tmp_path / "tune.json", 100, WORLD, KEYS).timed("a"):
        deadline = time.monotonic() + 60
        while not (tmp_path / "tune.json").exists():  # as the next process finds it
            assert time.monotonic() < deadline
        assert Budget(tmp_path / "tune.json", 100, WORLD, KEYS).spent > 0


def test_a_disk_that_is_full_for_a_while_does_not_end_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, write = [], budget_module.write_text

    def full_at_first(path: Path, text: str) -> None:
        tries.append(path)
        if len(tries) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    monkeypatch.setattr(budget_module, "SAVE_SECONDS", 0.01)
    monkeypatch.setattr(budget_module, "write_text", full_at_first)
    with Budget(tmp_path / "tune.json", 100, WORLD, KEYS).timed("a"):
        deadline = time.monotonic() + 60
        while not (tmp_path / "tune.json").exists():
            assert time.monotonic() < deadline


def test_the_time_of_another_search_in_the_folder_is_kept_and_not_counted(tmp_path: Path) -> None:
    budget = opened(tmp_path / "tune.json", 100, a=30, other=1000)
    assert budget.spent == 30 and budget.left == 70
    with budget.timed("b"):
        pass
    assert json.loads((tmp_path / "tune.json").read_text())["seconds"]["other"] == 1000


@pytest.mark.parametrize("text", ["{", "[]", '{"seconds": {"a": "x"}}', "{}"])
def test_a_damaged_record_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "tune.json").write_text(text)
    with pytest.raises(UserError, match="cannot be read"):
        Budget(tmp_path / "tune.json", 100, WORLD, KEYS)
