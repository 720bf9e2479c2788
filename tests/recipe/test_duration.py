"""Durations are a number with a unit; anything else is one line."""

import pytest

from beton_tools.base.errors import UserError
from fastft.cli import main
from fastft.recipe import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("1.5h", 5400), (" 2d ", 172_800), ("0.5s", 0.5)]
)
def test_durations_are_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text, "--budget") == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "-1h", "0m", "1 hour", "1h30m", "nan", "infh", "1e3s"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--budget is"):
        parse_duration(text, "--budget")


def test_a_wrong_duration_in_a_recipe_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "final_b16", "--train.stop_after=soon"]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1 and "train.stop_after is 'soon'" in said
