"""Any state.json is read, or refused as damaged in one line: never another exception, and never an endless read."""

import copy
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beton_tools.base.errors import UserError
from fastft.evaluate.trained import read_model
from fastft.recipe import load_recipe
from fastft.run.checkpoint import CHECKSUMS, list_checkpoints, read_checkpoint
from fastft.run.continuation import refuse_other_run
from fastft.train.checkpointing import _stored_progress
from fastft.train.progress import summarise
from tests import EXTENT
from tests.train.runs import flags, run

MANY = int(2_000 * EXTENT)
STEPS_PER_EPOCH = 6
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["1", "inf", "nan", "\x00", "\ud800", "²", "9" * 5000, "../../x", "rand-m9", 2**63, -1, 0, 1e308])
)  # fmt: skip
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory) -> Path:
    """The first checkpoint of an epoch, with evaluations; without checksums, which would hide what is read after them."""
    folder = tmp_path_factory.mktemp("fuzzed")
    run(tiny, folder, model__drop_path="0.3", schedule__stop_epoch="1")
    path = list_checkpoints(folder / "checkpoints")[-1]
    (path / CHECKSUMS).unlink()
    return path


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside an object."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, below in inner for found in [(*at, key), *places(below, (*at, key))]]


def changed(state: dict[str, Any], data: st.DataObject) -> bytes:
    """state.json with some values replaced, removed or doubled, or with some bytes changed."""
    state = copy.deepcopy(state)
    for _ in range(data.draw(st.integers(1, 3))):
        *path, key = data.draw(st.sampled_from(places(state)))
        entry = state
        for step in path:
            entry = entry[step]
        action = data.draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if action == "replace":
            entry[key] = data.draw(VALUES)
        elif action == "remove":
            del entry[key]
        elif isinstance(entry, dict):
            entry[data.draw(st.text(max_size=5))] = data.draw(VALUES)
        if not places(state):
            break
    text = bytearray(json.dumps(state), "utf-8")
    for _ in range(data.draw(st.sampled_from([0, 0, 0, 1, 3]))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    return bytes(text)


def read_all(path: Path, recipe: Any, current: dict[str, Any], state: bytes) -> bool:
    """True if everything that reads the state accepts it; anything else than UserError is a failure of the test."""
    (path / "state.json").write_bytes(state)
    accepted = True
    try:
        found = read_checkpoint(path, ("model", "optimizer", "ema"), resumable=True)
        refuse_other_run(found.state, recipe, current, path.parent)
        summarise(_stored_progress(found, STEPS_PER_EPOCH), recipe)
    except UserError:
        accepted = False
    with suppress(UserError):
        read_model(path, "model")
    return accepted


def fuzz(checkpoint: Path, tiny: dict[str, str], cases: int) -> None:
    whole = (checkpoint / "state.json").read_bytes()
    state = json.loads(whole)
    recipe = load_recipe("rcp/final_b16.yaml", flags(tiny, checkpoint.parent.parent, model__drop_path="0.3"))
    current = {key: state[key] for key in ("name", "recipe", "arch", "classes", "data")}
    assert read_all(checkpoint, recipe, current, whole)

    @settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def one(data: st.DataObject) -> None:
        read_all(checkpoint, recipe, current, changed(state, data))

    try:
        one()
    finally:
        (checkpoint / "state.json").write_bytes(whole)


def test_a_changed_state_is_read_or_refused_in_one_line(checkpoint: Path, tiny) -> None:
    fuzz(checkpoint, tiny, 300)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_changed_states_are_read_or_refused_in_one_line(checkpoint: Path, tiny) -> None:
    fuzz(checkpoint, tiny, MANY)
