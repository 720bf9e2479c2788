"""Shared parts of the fuzz targets: numbers of cases, damage to bytes, and a limit of time per case."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import EXTENT

LONG = int(2_000 * EXTENT)  # cases of a target in `make test-slow`
LIMIT = 5  # seconds of CPU time for one case


_POWERS = [1 << bits for bits in (8, 12, 13, 15, 31, 32, 63)]
EDGES = [0, 1, 2, 3, *(power + d for power in _POWERS for d in (-1, 0, 1))]
NUMBERS = st.one_of(st.sampled_from(EDGES), st.integers(0, (1 << 64) - 1), st.integers(0, 20_000))


def fuzz(examples: int, derandomize: bool = True) -> settings:
    """The same `examples` in every run, or new ones each time."""
    return settings(
        max_examples=examples,
        derandomize=derandomize,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def fuzz_target(
    check: Callable[..., None], data: st.SearchStrategy[Any], *fixtures: str, cases: int = 150
) -> tuple[Any, Any]:
    """Two tests that call `check` with these fixtures and data: a fast one, and one of LONG new cases for `make test-slow`."""

    def fast(request: pytest.FixtureRequest, data: Any) -> None:
        check(*(request.getfixturevalue(name) for name in fixtures or ("tmp_path",)), data)

    def long(request: pytest.FixtureRequest, data: Any) -> None:
        fast(request, data)

    at_length = fuzz(LONG, derandomize=False)(given(data=data)(long))
    slow = pytest.mark.slow(pytest.mark.timeout(7200)(at_length))
    return fuzz(cases)(given(data=data)(fast)), slow


_untimed = 0.0  # seconds of CPU time that count for no case


def _clock() -> float:
    return time.process_time() - _untimed


@contextmanager
def untimed() -> Iterator[None]:
    """Leave out what a test prepares: some virtual machines take a second to give it 200 MB."""
    global _untimed
    start = time.process_time()
    yield
    _untimed += time.process_time() - start


@contextmanager
def time_limit() -> Iterator[None]:
    start = _clock()
    yield
    assert _clock() - start < LIMIT


@st.composite
def damaged(draw: st.DrawFn, files: list[bytes], first: int, last: int, interesting: tuple[int, ...]) -> bytes:
    """One of the files with up to six changes: bytes or numbers set, bytes removed, repeated, or all that follow removed.

    first, last: offsets between which most changes are made; negative ones count from the end, as in slices.
    interesting: values that bytes are set to more often than to others.
    """
    file = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 6))):
        begin, end, _ = slice(first, last).indices(len(file))
        anywhere = st.integers(0, len(file) - 1)
        at = draw(st.one_of(st.integers(begin, max(begin, end - 1)), anywhere)) if begin < end else draw(anywhere)
        kind = draw(st.integers(0, 6))
        if kind < 3:
            file[at] = draw(st.one_of(st.integers(0, 255), st.sampled_from(interesting)))
        elif kind == 6:
            size = draw(st.sampled_from([2, 4, 8]))
            file[at : at + size] = (draw(NUMBERS) % (1 << 8 * size)).to_bytes(size, "little")
        elif kind == 3:
            del file[at : at + draw(st.integers(1, 40))]
        elif kind == 4:
            file[at:at] = file[at : at + draw(st.integers(1, 40))]
        else:
            del file[at:]
        if not file:
            break
    return bytes(file)
