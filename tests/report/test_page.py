"""Numbers as pages write them."""

import pytest

from fastft.report.page import figure


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234.4, "1,234"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.16, "0.160"), (0.1, "0.100"),
        (0.0123, "0.0123"), (0.29049, "0.290"), (0, "0.00"),
    ],
)  # fmt: skip
def test_figures_have_at_least_three_digits(value: float, text: str) -> None:
    assert figure(value) == text
