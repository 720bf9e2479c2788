"""Progress where there is no terminal."""

import time

import pytest

from beton_tools.base.progress_bar import progress_lines


@pytest.mark.parametrize("seconds", [0.02, 10.0])
def test_who_sees_a_line_of_the_middle_sees_one_of_the_end(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beton_tools.base.progress_bar.PLAIN_INTERVAL", seconds)
    said: list[str] = []
    with progress_lines("converting train", said.append) as show:
        show(0, 96, 0)
        time.sleep(0.03)
        show(1, 96, 0)
        show(96, 96, 0)
    assert [line.partition(",")[0] for line in said] == (
        ["converting train: 1 of 96 images", "converting train: 96 of 96 images"] if seconds < 1 else []
    )
