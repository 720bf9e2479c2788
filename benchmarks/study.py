"""Tables and picture of docs/study.md, made by tables.py from the trainings in results/study.jsonl.

Each line is a training of a row of study.yaml with one seed. Its gain is taken seed by seed over the line through the complete
schedules, at as many training FLOPs. The standard error has the scatter of all rows' gains between their seeds.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, variance

import numpy as np
from markupsafe import Markup

from beton_tools.base.console import markdown_table as markdown
from fastft.cost.work import recipe_work
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import load_recipe
from fastft.report.charts import svg_file

BENCHMARKS = Path(__file__).parent
RESULT = BENCHMARKS / "results" / "study.jsonl"
IMAGES = 1000  # of an epoch
WHOLE = "complete 100%"
TOLD_APART = 2  # standard errors
VERDICTS = {1: "better", 0: "not told apart", -1: "worse"}
LEFT, TOP, WIDTH, HEIGHT = 56, 12, 560, 300  # of the picture's plot, pixels


@dataclass(frozen=True)
class Way:
    """A row of the study. share: its training FLOPs, the whole schedule's are 1. top1: percent, by seed."""

    name: str
    share: float
    minutes: float
    top1: Mapping[int, float]

    @property
    def mean(self) -> float:
        return fmean(self.top1.values())


@cache
def ways() -> Sequence[Way]:
    """All rows, those with fewer FLOPs first."""
    text = RESULT.read_text(encoding="utf-8")
    trainings = [json.loads(line) for line in text.splitlines()]
    whole, found = _flops({"schedule": WHOLE, "images_share": 1}), []
    for name in dict.fromkeys(t["row"] for t in trainings):
        mine = [t for t in trainings if t["row"] == name]
        share = fmean(_flops(t) for t in mine) / whole
        found.append(Way(name, share, fmean(t["minutes"] for t in mine), {t["seed"]: t["top1"] for t in mine}))
    return sorted(found, key=lambda way: way.share)


def _flops(training: Mapping[str, float | str]) -> float:
    """Of training and of the head's features; `images_share` of the schedule's images were trained on."""
    recipe = load_recipe(f"{BENCHMARKS / 'study.yaml'}[{training['schedule']}]", [f"--data.train_size={IMAGES}"])
    work = recipe_work(recipe, recipe_arch(recipe), val_images=0)
    return work.train * float(training["images_share"]) + work.evaluate


def line() -> Sequence[Way]:
    """The complete schedules of at most the whole length."""
    return [way for way in ways() if way.name.startswith("complete") and way.share <= 1]


def gains(way: Way) -> list[float]:
    """Points above the line of the same seed, at as many FLOPs."""
    found = []
    for seed, top1 in way.top1.items():
        known = [w for w in line() if seed in w.top1]
        shares = np.log([w.share for w in known])
        found.append(top1 - float(np.interp(np.log(way.share), shares, [w.top1[seed] for w in known])))
    return found


def others() -> Sequence[Way]:
    return [way for way in ways() if way not in line()]


@cache
def scatter() -> float:
    """Standard deviation of a gain between seeds, pooled over all rows."""
    found = [gains(way) for way in others() if len(way.top1) > 1]
    return (sum(variance(g) * (len(g) - 1) for g in found) / sum(len(g) - 1 for g in found)) ** 0.5


def judged(way: Way) -> tuple[float, float, int]:
    """(gain over the line, its standard error, whether it is told apart: 1 above, -1 below)."""
    found = gains(way)
    gain, error = fmean(found), scatter() / len(found) ** 0.5
    return gain, error, int(np.sign(gain)) * (abs(gain) > TOLD_APART * error)


def complete(_: object) -> str:
    rows = [_cells(way) for way in ways() if way.name.startswith("complete")]
    return markdown(["schedule", "FLOPs", "minutes", "top-1 %", "seeds"], rows, 1)


def compared(_: object) -> str:
    """Every way against a complete schedule of as many FLOPs; numbers are those of the picture."""
    rows = []
    for number, way in enumerate((w for w in others() if w.share <= 1.05), 1):
        gain, error, sign = judged(way)
        rows.append([str(number), *_cells(way), f"{gain:+.1f} ± {error:.1f}", VERDICTS[sign]])
    head = ["", "way", "FLOPs", "minutes", "top-1 %", "seeds", "above the line", "verdict"]
    return markdown(head, rows, 2)


def _cells(way: Way) -> list[str]:
    return [way.name, f"{way.share:.0%}", f"{way.minutes:.1f}", f"{way.mean:.1f}", str(len(way.top1))]


def picture(_: object, theme: str) -> str:
    return svg_file(list(_drawing()), LEFT + WIDTH + 24, TOP + HEIGHT + 44, theme)


def _drawing() -> Iterator[Markup]:
    shown = [w for w in others() if w.share <= 1.05]
    means = [w.mean for w in [*line(), *shown]]
    low, high, first = np.floor(min(means)), np.ceil(max(means)), min(w.share for w in [*line(), *shown]) - 0.03
    place = lambda w: (LEFT + (w.share - first) / (1.03 - first) * WIDTH, TOP + (high - w.mean) / (high - low) * HEIGHT)  # noqa: E731
    for top1 in np.arange(low, high + 1):
        y = TOP + (high - top1) / (high - low) * HEIGHT
        yield Markup('<path class="grid" d="M{} {:.1f}h{}"/>').format(LEFT, y, WIDTH) + _text(
            LEFT - 8, y + 4, f"{top1:.0f} %", "end"
        )
    yield Markup('<path class="line accent" d="M{}"/>').format(
        "L".join("{:.1f} {:.1f}".format(*place(w)) for w in line())
    )
    for w in line():
        x, y = place(w)
        yield Markup('<circle class="dot accent" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(x, y)
        yield _text(x, TOP + HEIGHT + 18, f"{w.share:.0%}", "middle")
    for number, w in enumerate(shown, 1):
        x, y = place(w)
        yield Markup('<circle class="dot peer-1" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(x, y) + _text(
            x + 6, y + 4, str(number), "start"
        )
    yield _text(
        LEFT + WIDTH / 2, TOP + HEIGHT + 38, "training FLOPs of the whole schedule; line: complete schedules", "middle"
    )


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)
