"""Write the page for one benchmark result, or for several that are compared, and a comparison's JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beton_tools.base.atomic import write_text
from fastft.machine.bench_result import Result
from fastft.report.bench_compare import Comparison, compare, render_comparison
from fastft.report.bench_page import render_bench


def write_bench_page(results: Sequence[Result], path: Path, threshold: float | None = None) -> Comparison | None:
    """Write the page completely or not at all, and return the comparison if there are several results.

    Raises UserError if several results have no measure in common.
    """
    comparison = compare(results, threshold) if len(results) > 1 else None
    write_text(path, render_comparison(comparison) if comparison else render_bench(results[0]))
    return comparison


def comparison_as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as `fastft report --json` prints it. docs/bench-schema.md describes the keys."""
    figures = [
        {
            "key": change.shared.measure.key, "title": change.shared.title, "unit": change.shared.measure.unit,
            "better": change.shared.measure.better,
            "setting": change.shared.measure.setting | change.shared.found[0][2].setting,
            "medians": [None if cell is None else cell.median for cell in change.cells],
            "verdict": verdict.outcome if (verdict := change.verdict) else None,
            **({name: getattr(verdict, name) for name in NUMBERS} if verdict else dict.fromkeys(NUMBERS)),
        }
        for change in comparison.changes
    ]  # fmt: skip
    counts = {outcome.replace(" ", "_"): comparison.count(outcome) for outcome in ("better", "worse", "cannot tell")}
    missing = [f"{s.measure.key}, {s.setting}".rstrip(", ") for s in comparison.missing]
    return {
        **counts,
        "below": len(comparison.below),
        "missing": missing,
        "remarks": comparison.remarks,
        "figures": figures,
    }


NUMBERS = ("rounds", "ratio", "low", "high", "p_value", "rounds_needed", "below")  # of a verdict
