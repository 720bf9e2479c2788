"""`fastft report BENCH.json`: a benchmark file as one HTML page. The schema is docs/bench-schema.md."""

from collections.abc import Sequence
from itertools import groupby
from statistics import median
from typing import Any

from fastft.report.charts import nice_step, tick_label
from fastft.report.page import render_page

BASELINE = "fastft"


def render_bench(document: dict[str, Any], name: str) -> str:
    """The page as HTML; `document` from `read_bench`, `name` of its file."""
    groups = []
    for title, group in groupby(document["measures"], key=lambda m: m["name"]):
        groups.append({"title": title, "measures": [measure_view(m) for m in group]})
    about = {"date": "", "command": "", "machine": {}, "notes": []} | document
    return render_page("bench.html", title="Benchmark", name=name, groups=groups, about=about)


def measure_view(measure: dict[str, Any]) -> dict[str, Any]:
    """The measure with missing spreads and ratios computed, and the positions of its bars."""
    lower_is_better = measure.get("better") == "lower"
    contenders = [_filled(c) for c in measure["contenders"]]
    shown = [c for c in contenders if "median" in c]
    own = next((c for c in shown if c["name"] == measure.get("baseline", BASELINE)), None)
    scale = _axis(shown)
    for c in shown:
        c["ratio"] = c.get("ratio") or (_ratio(own, c, lower_is_better) if own is not None and c is not own else None)
        c["bar"] = {k: 100 * c[k] / scale["end"] for k in ("median", "min", "max")}
        c["dots"] = [100 * r / scale["end"] for r in c["rounds"]]
        c["own"] = c is own
    return {
        **measure,
        "contenders": shown,
        "skipped": [c for c in contenders if "median" not in c],
        "better": "lower is better" if lower_is_better else "higher is better",
        "setting": measure.get("setting", {}),
        "modelled": measure.get("modelled", False),
        "axis": scale,
        "compared": any(c["ratio"] for c in shown),
    }


def _filled(contender: dict[str, Any]) -> dict[str, Any]:
    c = {"note": "", "modelled": False, "limit": False, **contender}
    if "median" not in c:
        return c
    c["rounds"] = c.get("rounds") or [c["median"]]
    c["min"], c["max"] = c.get("min", min(c["rounds"])), c.get("max", max(c["rounds"]))
    return c


def _ratio(own: dict[str, Any], peer: dict[str, Any], lower_is_better: bool) -> dict[str, float] | None:
    """How many times better `own` is: round by round if the rounds alternated, because load slows both sides."""
    top, bottom = (peer, own) if lower_is_better else (own, peer)
    if len(top["rounds"]) == len(bottom["rounds"]) and all(bottom["rounds"]):
        by_round = [a / b for a, b in zip(top["rounds"], bottom["rounds"], strict=True)]
        return {"median": median(by_round), "min": min(by_round), "max": max(by_round)}
    if not bottom["median"]:
        return None
    ratio = top["median"] / bottom["median"]
    return {"median": ratio, "min": ratio, "max": ratio}


def _axis(contenders: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """An axis from 0 to a round number: its end, and ticks with positions in percent."""
    highest = max((c["max"] for c in contenders), default=0) or 1
    step = nice_step(highest / 4)
    count = -(-highest // step)
    ticks = [(tick_label(k * step, step), 100 * k / count) for k in range(int(count) + 1)]
    return {"end": count * step, "ticks": ticks}
