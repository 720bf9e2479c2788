"""Write the page of benchmark results: of one, or of several compared."""

from collections.abc import Sequence
from pathlib import Path

from beton_tools.base.atomic import write_text
from fastft.machine.bench_result import Result
from fastft.report.bench_compare import render_comparison
from fastft.report.bench_page import render_bench


def write_bench_page(results: Sequence[Result], path: Path) -> None:
    """Write the page whole or not at all.

    Raises UserError: several results have no measure in common.
    """
    write_text(path, render_bench(results[0]) if len(results) == 1 else render_comparison(results))
