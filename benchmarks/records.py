"""The results in results/: JSON lines that a script appends, each with what was measured, when, where and at which commit."""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from scipy.stats import t as student_t  # type: ignore[import-untyped]

from fastft.bench.circumstances import commit
from fastft.machine.facts import cpu_name

FOLDER = Path(__file__).parent / "results"
RISK = 0.05  # that any bold gain in a table is wrong (Bonferroni)
Row = dict[str, Any]


@cache
def lines(name: str) -> list[Row]:
    """Return the lines of results/NAME.jsonl."""
    return _read(FOLDER / f"{name}.jsonl")


def document(name: str) -> Any:
    """Return the content of results/NAME.json."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def _read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def provenance() -> dict[str, str]:
    """Return the commit, processor and date that each line has."""
    return {"commit": str(commit()[0])[:8], "processor": cpu_name(), "date": time.strftime("%Y-%m-%d")}


def store(path: Path, measured: Row) -> None:
    """Write a JSON file with what was measured, and where, when and at which commit."""
    made = provenance()
    row = {"cpu": made.pop("processor"), **made, **measured}
    path.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


def append(path: Path, cases: Iterable[Row], measure: Callable[..., Iterable[Row]]) -> None:
    """Measure each case, and append the lines that `measure(**case)` yields. A case that has a line is not measured again.

    The lines are also printed, with a percentage in place of 0 or 1 for every image.
    """
    for case in cases:
        if any(case.items() <= row.items() for row in _read(path)):
            continue
        for found in list(measure(**case)):  # all of them or none, if it is stopped
            row = case | found | provenance()
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, separators=(",", ":")) + "\n")
            shown = row | ({"right": f"{100 * fmean(row['right']):.1f} %"} if "right" in row else {})
            print(", ".join(f"{name} {value}" for name, value in shown.items()), flush=True)


def combined(**values: Iterable[Any]) -> list[Row]:
    """Return all combinations of the values, the last varying fastest."""
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def facts(runs: Iterable[Mapping[str, Any]], *names: str) -> list[str]:
    """Return the values of each of these fields, joined by commas."""
    found = list(runs)
    return [", ".join(sorted({str(row[name]) for row in found})) for name in names]


def told_apart_from(comparisons: int, freedom: float = math.inf) -> float:
    """Return how many standard errors tell a gain apart from 0, where so many are compared.

    freedom: degrees of freedom of the standard error's estimate.
    """
    return float(student_t.isf(RISK / 2 / comparisons, freedom))


def points(gain: float, error: float, told_apart: bool) -> str:
    """Format points with their standard error, in bold if they are told apart from 0."""
    text = f"{round(gain, 1) + 0.0:+.1f} ± {error:.1f}"  # + 0.0: no -0.0
    return f"**{text}**" if told_apart else text
