"""`fastft report BENCH.json`: a benchmark file as one HTML page. The schema is docs/bench-schema.md."""

from collections.abc import Sequence
from itertools import groupby
from statistics import median
from typing import Any

from fastft.report.charts import Chart, Series, nice_step, render_chart, tick_label
from fastft.report.page import render_page

BASELINE = "fastft"
PEER_STYLES = 4  # styles peer-1 ... peer-4 are used in rotation
SCALING_POINTS = 3  # a curve is drawn for at least this many settings


def render_bench(document: dict[str, Any], name: str) -> str:
    """The page as HTML; `document` from `read_bench`, `name` of its file."""
    groups = []
    for title, group in groupby(document["measures"], key=lambda m: m["name"]):
        measures = [measure_view(m) for m in group]
        groups.append({"title": title, "chart": scaling_chart(measures), "measures": measures})
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


def scaling_chart(measures: Sequence[dict[str, Any]]) -> Any:
    """Medians over the one number in which the settings differ, such as threads; empty if there is none."""
    key = _varied(measures)
    if key is None:
        return ""
    ordered = sorted(measures, key=lambda m: m["setting"][key])
    names = list(dict.fromkeys(c["name"] for m in ordered for c in m["contenders"]))
    peers = [n for n in names if n != BASELINE]
    series = []
    for name in names:
        points = [(m["setting"][key], c) for m in ordered for c in m["contenders"] if c["name"] == name]
        style = "accent" if name == BASELINE else f"peer-{peers.index(name) % PEER_STYLES + 1}"
        xs = [x for x, _ in points]
        series.append(Series(name, style, xs, *([c[k] for _, c in points] for k in ("median", "min", "max"))))
    unit = f"{measures[0]['unit']}; median, whiskers from the slowest to the fastest round"
    x_ticks = [m["setting"][key] for m in ordered]
    return render_chart(Chart(f"Over {key}", key, unit, series, from_zero=True, decimals=1, x_ticks=x_ticks))


def _varied(measures: Sequence[dict[str, Any]]) -> str | None:
    if len(measures) < SCALING_POINTS or len({m["unit"] for m in measures}) > 1:
        return None
    keys = {k for m in measures for k in m["setting"]}
    varied = [k for k in sorted(keys) if len({repr(m["setting"].get(k)) for m in measures}) > 1]
    numbers = (int, float)
    if len(varied) != 1 or not all(type(m["setting"].get(varied[0])) in numbers for m in measures):
        return None
    return varied[0] if len({m["setting"][varied[0]] for m in measures}) == len(measures) else None
