"""The command that builds the image sets of the measurements."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_a_misspelt_set_after_the_options_is_told_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import photo_sets

    cache = tmp_path / "cache"
    monkeypatch.setattr(
        sys, "argv", ["photo_sets.py", str(tmp_path / "sets"), "--cache", str(cache), "stamps", "stmaps"]
    )
    with pytest.raises(SystemExit, match="2"):
        photo_sets.main()
    assert "stmaps: no such set. Choose from stamps, " in capsys.readouterr().err
    assert not cache.exists()
