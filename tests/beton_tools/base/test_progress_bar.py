"""Promises about the progress of conversions."""

import time

import pytest

from beton_tools.base.progress_bar import _Rate


def test_the_start_of_processes_is_not_counted_as_time_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    meter, shown = _Rate("img"), []
    for now[0], done in ((0, 100), (60, 100), (60, 101), (61, 111)):
        shown.append(meter.text(done, 211, 0))
    assert shown == ["", "", "", "10 img/s, 10 s left"]
