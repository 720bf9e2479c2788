"""What commands print."""

import pytest

from beton_tools.base.console import counted


@pytest.mark.parametrize(
    ("number", "what", "text"),
    [
        (1, "images", "1 image"),
        (0, "images", "0 images"),
        (1234, "training images", "1,234 training images"),
        (1, "validation images", "1 validation image"),
        (1, "classes", "1 class"),
        (1, "pages", "1 page"),
    ],
)
def test_a_count_has_its_noun_in_the_singular_for_one(number: int, what: str, text: str) -> None:
    assert counted(number, what) == text
