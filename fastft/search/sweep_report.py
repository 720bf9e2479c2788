"""Report the results of a sweep in the paper's layout: terminal, Markdown, JSON, plot."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from beton_tools.base.atomic import write_text
from beton_tools.base.console import compact_table, markdown_table, print_table
from fastft.recipe.tables import Sweep
from fastft.search.figure import draw_plot
from fastft.search.sweep_results import Outcome, Score

COLUMNS = ("paper", "ours", "diff", "best EMA", "last EMA", "best raw", "last raw")
NOTE = (
    "Top-1 in percent. 'Ours' is the best epoch of the EMA (of the raw model where the paper has no EMA), "
    "chosen on the validation images as in the paper. ± is the binomial standard error, @ the epoch from 0."
)


def write_report(sweep: Sweep, outcomes: Sequence[Outcome], folder: Path) -> None:
    """Write table.md, results.json and plot.png, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.md", markdown(sweep, outcomes))
    write_text(folder / "results.json", json.dumps(as_json(sweep, outcomes), indent=1) + "\n")
    draw_plot(sweep, outcomes, folder / "plot.png")


def print_report(sweep: Sweep, outcomes: Sequence[Outcome], console: Console) -> None:
    rows = ([outcome.row.title, *_cells(outcome)] for outcome in outcomes)
    print_table(compact_table(f"{sweep.title} ({sweep.source})", ["row", *COLUMNS], rows), console)
    for outcome in outcomes:
        if outcome.error:
            console.print(f"{outcome.row.title}: {outcome.error}", style="red", highlight=False, markup=False)


def markdown(sweep: Sweep, outcomes: Sequence[Outcome]) -> str:
    """The paper's table with our line below each of its lines, then all figures of every row."""
    parts = [f"# {sweep.title} ({sweep.source})", _grid(sweep, outcomes), NOTE, _details(outcomes)]
    failed = [f"- {o.row.title}: {o.error}" for o in outcomes if o.error]
    if failed:
        parts.append("Failed:\n\n" + "\n".join(failed))
    return "\n\n".join(parts) + "\n"


def as_json(sweep: Sweep, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "name": sweep.name,
        "title": sweep.title,
        "source": sweep.source,
        "rows": [_json_row(sweep, o) for o in outcomes],
    }


def _grid(sweep: Sweep, outcomes: Sequence[Outcome]) -> str:
    cells = {(o.row.series, o.row.label): o for o in outcomes}
    lines = []
    for series in sweep.series:
        row = [cells.get((series, label)) for label in sweep.labels]
        lines.append(
            [f"{series} paper".strip(), *("" if o is None else as_published(o.row.paper) for o in row)]
        )
        lines.append([f"{series} ours".strip(), *("" if o is None else _score(o.ours) for o in row)])
    return markdown_table(["", *sweep.labels], lines)


def _details(outcomes: Sequence[Outcome]) -> str:
    lines = [[o.row.title, *_cells(o), f"`{o.run.folder.name}`"] for o in outcomes]
    return markdown_table(["row", *COLUMNS, "run"], lines)


def _cells(outcome: Outcome) -> list[str]:
    difference = "-" if outcome.difference is None else f"{outcome.difference:+.2f}"
    ours = "failed" if outcome.error else _score(outcome.ours)
    scores = []
    for weights in ("ema", "raw"):
        best, last = outcome.best(weights), outcome.last(weights)
        scores += (
            ["-", "-"]
            if best is None or last is None
            else [f"{best.top1:.2f} @{best.epoch}", f"{last.top1:.2f}"]
        )
    return [as_published(outcome.row.paper), ours, difference, *scores]


def as_published(top1: float | None) -> str:
    """A figure with one decimal, or two if the paper gives two; "-" if it gives none."""
    if top1 is None:
        return "-"
    return f"{top1:.1f}" if round(top1, 1) == top1 else f"{top1:.2f}"


def _score(score: Score | None) -> str:
    return "-" if score is None else f"{score.top1:.2f}±{score.standard_error:.2f}"


def _json_row(sweep: Sweep, outcome: Outcome) -> dict[str, Any]:
    def plain(score: Score | None) -> dict[str, Any] | None:
        return None if score is None else vars(score)

    return {
        "label": outcome.row.label,
        "series": outcome.row.series,
        "recipe": sweep.reference(outcome.row),
        "run": str(outcome.run.folder),
        "number": outcome.row.number,
        "paper": outcome.row.paper,
        "ours": plain(outcome.ours),
        "difference": outcome.difference,
        "best_ema": plain(outcome.best("ema")),
        "last_ema": plain(outcome.last("ema")),
        "best_raw": plain(outcome.best("raw")),
        "last_raw": plain(outcome.last("raw")),
        "error": outcome.error,
    }
