"""Write the page for one benchmark result, or for several that are compared."""

from collections.abc import Sequence
from pathlib import Path

from beton_tools.base.atomic import write_text
from fastft.machine.bench_result import Result
from fastft.report.bench_compare import render_comparison
from fastft.report.bench_page import render_bench


def write_bench_page(results: Sequence[Result], path: Path) -> None:
    """Write the page completely or not at all.

    Raises UserError if several results have no measure in common.
    """
    write_text(path, render_bench(results[0]) if len(results) == 1 else render_comparison(results))
