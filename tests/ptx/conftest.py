"""Prints what was executed."""

from typing import Any

from tests.ptx.figures import FIGURES


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if rows := FIGURES.summary():
        terminalreporter.section("PTX executed on the CPU")
        for row in rows:
            terminalreporter.write_line(row)
