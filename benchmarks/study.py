"""The tables and the picture of docs/study.md, made by tables.py from benchmarks/results/study_runs.jsonl.

After a first line with the setting, a line of that file is a training: its row, seed, part (lever: a way to save) and points: for
each scored epoch the FLOPs of training so far and which test images the EMA and the raw weights named, one bit per image.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t  # type: ignore[import-untyped]

from beton_tools.base.console import markdown_table
from fastft.report.charts import Chart, Series

RUNS = Path(__file__).parent / "results" / "study_runs.jsonl"
# the row that ways to save change: 12 and 18 of its 20 epochs are scored too
BASE = "lr 0.0003, decay 0.5"
# rows of the paper's chain, and "stop", the base after 12 epochs: the row in the file, weights, scored point
NAMED = {
    "base": (BASE, "ema", -1), "stop": (BASE, "ema", 0), "smaller lr": ("no decay, lr 1e-05", "raw", -1),
    "baseline": ("no decay, lr 3e-05", "raw", -1), "EMA": ("no decay, lr 3e-05", "ema", -1),
    "layer decay": ("layer decay", "ema", -1), "half the length": ("half length", "ema", -1),
}  # fmt: skip
# step, the row before it, its own row, the paper's points (Figure 1); the tune images prefer the baseline's lr
CHAIN = (
    ("smaller lr", "baseline", "smaller lr", 2.0), ("EMA", "baseline", "EMA", 0.3), ("layer decay", "EMA", "layer decay", 0.7),
    ("half the length", "layer decay", "half the length", -0.1), ("no mixing", "half the length", "base", 0.5),
)  # fmt: skip
PUBLISHED = {
    "stop": "+0.9 (log of B/16: 85.66 after 30 of 50 epochs, 84.73 at the end)",
    "freeze 1/2": "-0.1 (paper Figure 3)",
    "freeze 3/4": "between -0.1 and -1.8 (paper Figure 3: 6 and 1 of 12 blocks)",
}
CONFIDENCE = 0.975  # two-sided 95 %
BELOW_FRONT = 3.0  # points; rows further below the front are not drawn


@dataclass(frozen=True)
class Row:
    """hits: which test images the run with a seed named, bool (n,). flops: of one training."""

    name: str
    flops: float
    hits: Mapping[int, np.ndarray]

    @property
    def top1(self) -> float:
        return 100 * float(np.mean([hits.mean() for hits in self.hits.values()]))

    @property
    def error(self) -> float:
        """Standard error of top-1 over seeds."""
        return _error([100 * hits.mean() for hits in self.hits.values()])

    def minus(self, other: "Row") -> list[str]:
        """Cells of the difference, paired by seed and image: points with their standard error over seeds, seeds, verdict."""
        seeds = sorted(self.hits.keys() & other.hits.keys())
        gains = [100 * (self.hits[s].mean() - other.hits[s].mean()) for s in seeds]
        gain, error = float(np.mean(gains)), _error(gains)
        told = abs(gain) > t.ppf(CONFIDENCE, len(seeds) - 1) * error
        verdict = ("better" if gain > 0 else "worse") if told else "not told apart"
        return [f"{gain:+.1f} ± {error:.1f}", str(len(seeds)), verdict]


def _error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / len(values) ** 0.5)


def read_rows(path: Path = RUNS) -> dict[str, Row]:
    """Every row by its name on the page, cheapest first."""
    runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]

    def row(name: str, stored: str, weights: str, point: int) -> Row:
        points = {r["seed"]: r["points"][point] for r in runs if r["row"] == stored}
        return Row(name, points[0]["flops"], {seed: _unpack(p[f"test_{weights}"]) for seed, p in points.items()})

    levers = {r["row"]: (r["row"], "ema", -1) for r in runs if r["part"] == "lever"}
    rows = [row(name, *stored) for name, stored in (NAMED | levers).items()]
    return {r.name: r for r in sorted(rows, key=lambda r: r.flops)}


def _unpack(bits: str) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8)).astype(bool)


def front(rows: Mapping[str, Row]) -> list[Row]:
    """Rows that no other row beats in accuracy at as few FLOPs, cheapest first."""
    ordered = sorted(rows.values(), key=lambda r: (r.flops, -r.top1))
    return [r for k, r in enumerate(ordered) if all(r.top1 > cheaper.top1 for cheaper in ordered[:k])]


def savings(_: Any) -> str:
    """The ways to save, against the base."""
    rows = read_rows()
    base, chain = rows["base"], {own for _, before, own, _ in CHAIN for own in (before, own)}
    cells = [
        [r.name, f"{r.flops / base.flops:.0%}", *r.minus(base), PUBLISHED.get(r.name, "")]
        for r in sorted(rows.values(), key=lambda r: -r.flops)
        if r.name not in chain
    ]
    return markdown_table(["against the base", "FLOPs", "points", "seeds", "verdict", "published for CLIP"], cells)


def steps(_: Any) -> str:
    """The steps of the paper's chain."""
    rows = read_rows()
    cells = [[step, before, *rows[own].minus(rows[before]), f"{points:+.1f}"] for step, before, own, points in CHAIN]
    return markdown_table(["step", "after", "points", "seeds", "verdict", "paper's points"], cells)


def every_row(_: Any) -> str:
    rows = read_rows()
    best = [r.name for r in front(rows)]
    cells = [
        [r.name, f"{r.top1:.1f} ± {r.error:.1f}", f"{r.flops / 1e12:.2f}", str(best.index(r.name) + 1) if r.name in best else ""]
        for r in rows.values()
    ]  # fmt: skip
    seeds = len(rows["base"].hits)
    return markdown_table(["row", f"top-1 %, {seeds} seeds", "training TFLOP", "Pareto front"], cells)


def front_chart() -> Chart:
    """Top-1 of every row against its training FLOPs; rows on the Pareto front are joined and numbered."""
    rows = read_rows()
    best = front(rows)
    floor = min(r.top1 for r in best) - BELOW_FRONT
    others = [r for r in rows.values() if r not in best and r.top1 >= floor]

    def series(name: str, style: str, shown: Sequence[Row]) -> Series:
        top1, error = [r.top1 for r in shown], [r.error for r in shown]
        low, high = ([y + sign * e for y, e in zip(top1, error, strict=True)] for sign in (-1, 1))
        return Series(name, style, [r.flops / 1e12 for r in shown], top1, low, high)

    return Chart(
        "CIFAR-10, ViT-S/14 at 56 px:", "training TFLOP", "top-1 % of the test images",
        [series("other rows", "peer-1 points", others), series("Pareto front", "accent", best)],
        notes=[(r.flops / 1e12, r.top1, str(number)) for number, r in enumerate(best, 1)], x_range=(0, 100),
    )  # fmt: skip
