"""The time spent is remembered, whatever ends a process."""

import json
import time
from pathlib import Path

import pytest
import torch

from beton_tools.base.errors import UserError
from fastft.search import tune as tune_module
from fastft.search.tune import Budget
from fastft.train.distributed import World

WORLD = World(0, 1, 0, torch.device("cpu"))
KEYS = ("a", "b", "c", "short", "long", "new")


def opened(path: Path, limit: float, **seconds: float) -> Budget:
    path.write_text(json.dumps({"seconds": seconds}))
    return Budget(path, limit, WORLD, KEYS)


def test_time_is_remembered_also_after_an_error(tmp_path):
    budget = Budget(tmp_path / "tune.json", 100, WORLD, KEYS)
    with pytest.raises(KeyError), budget.timed("a"):
        raise KeyError
    again = Budget(tmp_path / "tune.json", 100, WORLD, KEYS)
    assert 0 < again.spent == budget.spent
    with again.timed("a"):
        pass
    assert again.spent > budget.spent


def test_time_is_remembered_by_a_process_that_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(tune_module, "SAVE_SECONDS", 0.01)
    with Budget(tmp_path / "tune.json", 100, WORLD, KEYS).timed("a"):
        deadline = time.monotonic() + 60
        while not (tmp_path / "tune.json").exists():  # as the next process finds it
            assert time.monotonic() < deadline
        assert Budget(tmp_path / "tune.json", 100, WORLD, KEYS).spent > 0


def test_the_time_of_another_search_in_the_folder_is_kept_and_not_counted(tmp_path):
    budget = opened(tmp_path / "tune.json", 100, a=30, other=1000)
    assert budget.spent == 30 and budget.left() == 70 and budget.left(0.5) == 20
    with budget.timed("b"):
        pass
    assert json.loads((tmp_path / "tune.json").read_text())["seconds"]["other"] == 1000


@pytest.mark.parametrize("text", ["{", "[]", '{"seconds": {"a": "x"}}', "{}"])
def test_a_damaged_record_is_one_line(tmp_path, text):
    (tmp_path / "tune.json").write_text(text)
    with pytest.raises(UserError, match="cannot be read"):
        Budget(tmp_path / "tune.json", 100, WORLD, KEYS)
