"""Tables and picture for docs/study.md, made by tables.py from the runs in results/study*.jsonl.

Each line is a run of a row in study.yaml or study_short.yaml with one seed. Gains are computed seed by seed: over the
whole schedule, and over the line through the complete schedules with the same training FLOPs. Their standard errors use
the scatter between seeds, pooled over all rows that start from the same tower.
"""

from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any, NamedTuple

import numpy as np
import yaml
from markupsafe import Markup
from records import FOLDER as RESULTS
from records import RISK, facts, lines, points, told_apart_from

from beton_tools.base.console import markdown_table as markdown
from fastft.cost.work import recipe_work
from fastft.jobs.decided import load_decided
from fastft.model.recipe_model import recipe_arch
from fastft.report.charts import Canvas, svg_file, svg_text

FOLDER = Path(__file__).parent
IMAGES = 1000  # images per epoch
WHOLE = "complete 100%"
STARTS = ("other classes", "these classes")  # in study_short.jsonl: what the tower was trained on before
CONTROL, LENGTHS = "usual head", ("10%", "20%", "40%", "100%")  # the complete schedules in study_short.yaml
LETTER = 6.4  # width of one letter in the picture, in pixels


@dataclass(frozen=True)
class Way:
    """A row of the study.

    Attributes:
        share: its training FLOPs, as a fraction of the whole schedule's.
        top1: percent, by seed.
    """

    name: str
    share: float
    minutes: float
    top1: Mapping[int, float]

    @property
    def mean(self) -> float:
        return fmean(self.top1.values())


@cache
def ways() -> Sequence[Way]:
    """Return all rows of study.yaml, those with fewer FLOPs first."""
    mine = lines("study")
    whole = _flops("study", mine[0] | {"schedule": WHOLE, "images_share": 1})
    return sorted(_ways("study", mine, whole), key=lambda way: way.share)


def _ways(study: str, trainings: Iterable[dict[str, Any]], whole: float) -> list[Way]:
    """Return a study's rows in the order of their first run. whole: the FLOPs that count as a share of 1."""
    by_row: dict[str, list[dict[str, Any]]] = {}
    for training in trainings:
        by_row.setdefault(training["row"], []).append(training)
    return [
        Way(
            name,
            fmean(_flops(study, training) for training in mine) / whole,
            fmean(training["minutes"] for training in mine),
            {training["seed"]: training["top1"] for training in mine},
        )
        for name, mine in by_row.items()
    ]


def _flops(study: str, training: Mapping[str, Any]) -> float:
    """Return the FLOPs for training and for the head's features.

    Training used this fraction of the schedule's images (`images_share`), or the same amount of work.
    """
    row = training.get("schedule", training["row"])
    recipe = load_decided(f"{FOLDER / study}.yaml[{row}]", [f"--data.train_size={IMAGES}"])
    work = recipe_work(recipe, recipe_arch(recipe), val_images=0)
    return work.train * training.get("images_share", 1) + work.evaluate


def line() -> Sequence[Way]:
    """Return the complete schedules that are not longer than the whole one."""
    return [way for way in ways() if way.name.startswith("complete") and way.share <= 1]


def others() -> Sequence[Way]:
    return [way for way in ways() if not way.name.startswith("complete")]


def over_whole(way: Way) -> list[float]:
    """Return the gain over the whole schedule with the same seed, in points."""
    return _over([w for w in line() if w.name == WHOLE], way)


def over_line(way: Way) -> list[float]:
    """Return the gain over the complete schedules with the same seed and the same FLOPs, in points."""
    return _over(line(), way)


def _over(control: Sequence[Way], way: Way) -> list[float]:
    """Return the gain over the line through `control`, ordered by FLOPs, with the same seed, in points.

    Left of the line, the gain is over its left end.
    """
    gains = []
    for seed, top1 in way.top1.items():
        known = [w for w in control if seed in w.top1]
        shares = np.log([w.share for w in known])
        gains.append(top1 - float(np.interp(np.log(way.share), shares, [w.top1[seed] for w in known])))
    return gains


class Scatter(NamedTuple):
    """The standard deviation of a gain between seeds, and the degrees of freedom of this estimate."""

    deviation: float
    freedom: int

    @classmethod
    def pooled(cls, gains: Iterable[Sequence[float]]) -> "Scatter":
        several = [g for g in gains if len(g) > 1]
        freedom = sum(len(g) - 1 for g in several)
        return cls((sum(variance(g) * (len(g) - 1) for g in several) / freedom) ** 0.5, freedom)


class Gain(NamedTuple):
    """A mean gain in points, its standard error, and how many standard errors tell it apart from 0."""

    mean: float
    error: float
    threshold: float

    @classmethod
    def of(cls, by_seed: Sequence[float], scatter: Scatter, comparisons: int) -> "Gain":
        threshold = told_apart_from(comparisons, scatter.freedom)
        return cls(fmean(by_seed), scatter.deviation / len(by_seed) ** 0.5, threshold)

    @property
    def told_apart(self) -> bool:
        return abs(self.mean) > self.threshold * self.error

    def __str__(self) -> str:
        return points(self.mean, self.error, self.told_apart)


@cache
def scatter(gains: Callable[[Way], list[float]]) -> Scatter:
    """Return the scatter of a gain, pooled over all rows."""
    return Scatter.pooled(gains(way) for way in others())


def gain_of(way: Way, gains: Callable[[Way], list[float]]) -> Gain:
    """Return a way's gain. Two gains are compared with 0 in each row of the table."""
    return Gain.of(gains(way), scatter(gains), 2 * len(others()))


def complete() -> str:
    rows = [_cells(way) for way in ways() if way.name.startswith("complete")]
    return markdown(["schedule", "FLOPs", "minutes", "top-1 %", "seeds"], rows)


def compared() -> str:
    """Tabulate every way beside the whole schedule and a complete one with the same FLOPs.

    Numbers match the picture's.
    """
    rows = [
        [str(number), *_cells(way), str(gain_of(way, over_whole)), str(gain_of(way, over_line))]
        for number, way in enumerate(others(), 1)
    ]
    head = ["", "way", "FLOPs", "minutes", "top-1 %", "seeds", "over the whole schedule", "over the same FLOPs"]
    return markdown(head, rows, 2)


@dataclass(frozen=True)
class Short:
    """The rows of study_short.jsonl for one start.

    Attributes:
        over_line: gains by row over complete schedules with a usual head and the same FLOPs.
        over_whole: gains by row over the complete schedule with a usual head and the whole length.
    """

    ways: Mapping[str, Way]
    over_line: Mapping[str, list[float]]
    over_whole: Mapping[str, list[float]]


@cache
def shorts() -> Mapping[str, Short]:
    """Return the rows by start."""
    done = lines("study_short")
    return {start: _short(t for t in done if t["start"] == start) for start in STARTS}


def _short(trainings: Iterable[dict[str, Any]]) -> Short:
    mine = _ways("study_short", trainings, _flops("study_short", {"row": f"{CONTROL}, 100%"}))
    control = sorted((w for w in mine if w.name.removeprefix(f"{CONTROL}, ") in LENGTHS), key=lambda w: w.share)
    others = [way for way in mine if way not in control]
    over_whole = {way.name: _over(control[-1:], way) for way in mine if way != control[-1]}
    return Short({w.name: w for w in mine}, {w.name: _over(control, w) for w in others}, over_whole)


def short_gain(gains: str, start: str, row: str) -> Gain:
    """Return one of a `Short`'s gains. The scatter is that of its own start."""
    mine = getattr(shorts()[start], gains)
    comparisons = sum(len(each.over_line) + len(each.over_whole) for each in shorts().values())
    return Gain.of(mine[row], Scatter.pooled(mine.values()), comparisons)


def short() -> str:
    """Tabulate short schedules for both starts beside complete ones with a random head at the usual size."""
    ways, rows = ChainMap(*(dict(each.ways) for each in shorts().values())), []
    for name in dict.fromkeys(name for each in shorts().values() for name in each.ways):
        top1 = [f"{each.ways[name].mean:.1f}" if name in each.ways else "" for each in shorts().values()]
        gains = [
            str(short_gain(gain, start, name)) if name in getattr(each, gain) else ""
            for gain in ("over_line", "over_whole")
            for start, each in shorts().items()
        ]
        rows.append([name, f"{ways[name].share:.0%}", *top1, *gains])
    titles = "top-1 %", "over the same FLOPs", "over the whole schedule"
    return markdown(["way", "FLOPs", *(f"{start}: {title}" for title in titles for start in STARTS)], rows)


def draws() -> str:
    """Tabulate gains on other images: 1,000 others of the same classes, and another dataset."""
    done = lines("study_draws")
    names = list(dict.fromkeys(t["images"] for t in done))
    found = [shorts()[STARTS[0]], *(_short(t for t in done if t["images"] == name) for name in names)]
    rows = []
    for way in sorted(found[-1].ways.values(), key=lambda way: way.share)[:-1]:
        for title, gains in ("the same FLOPs", "over_line"), ("the whole schedule", "over_whole"):
            if way.name not in getattr(found[-1], gains):
                continue
            *drawn, other = (fmean(getattr(short, gains)[way.name]) for short in found)
            mean = points(fmean(drawn), stdev(drawn) / len(drawn) ** 0.5, told_apart=False)
            rows.append([way.name, title, *(f"{gain:+.1f}" for gain in drawn), mean, f"{other:+.1f}"])
    *drawn, other = (short.ways[f"{CONTROL}, 100%"].mean for short in found)
    top1 = [f"{value:.1f}" for value in (*drawn, fmean(drawn), other)]
    rows.append([f"{CONTROL}, 100%: top-1 %", "", *top1])
    return markdown(["way", "over", "first draw", *names[:-1], "mean of the draws", names[-1]], rows, 2)


def drawn() -> str:
    """Say where and when the runs on other images were made."""
    return "{}, bf16, one thread, {}, commit {}.".format(*facts(lines("study_draws"), "processor", "date", "commit"))


THREE, THREE_SHORT = "probe head, freeze 1/2, 40%", "fitted head, freeze 1/2, 40%"  # the same way, in either study


def summary() -> str:
    """Summarise the three savings together, beside complete schedules with a usual head, and with the paper's head."""
    start = STARTS[0]
    mine = shorts()[start].ways
    way, whole = mine[THREE_SHORT], mine[f"{CONTROL}, 100%"]
    old = next(w for w in others() if w.name == THREE)

    def beside(gain: Gain, other: str) -> str:
        return f"{abs(gain.mean):.1f} ± {gain.error:.1f} points {'better' if gain.mean > 0 else 'worse'} than {other}"

    small = -short_gain("over_line", start, "paper's head, 10%").mean
    return (
        f"A fitted head, a frozen lower half and 40 % of the epochs together take {way.share:.0%} of the FLOPs and "
        f"{way.minutes / whole.minutes:.0%} of the minutes. They are "
        f"{beside(short_gain('over_line', start, THREE_SHORT), 'a complete schedule with the same FLOPs')}, and "
        f"{beside(short_gain('over_whole', start, THREE_SHORT), 'the whole schedule')} (three seeds, ± standard error). Both "
        "schedules start from a random head of the usual size. The paper's head, a thousandth of it, costs up to "
        f"{small:.1f} points in short schedules. Beside schedules with that head the same way is "
        f"{beside(gain_of(old, over_line), 'one with the same FLOPs')} and {beside(gain_of(old, over_whole), 'the whole one')}."
    )


# ways to train for fewer hours that others have measured: name, what they report, here, row in the first table or None
SHORTER = (
    ("drop patches while training (FLIP, PatchDropout)",
     "FLIP: better and faster than CLIP without masking, pretrained on 400 million pairs (arXiv 2212.00794). "
     "PatchDropout: at least 50 % fewer FLOPs on ImageNet (arXiv 2208.07220)",
     "`model.patch_dropout`, at one rate for the whole run; no recipe",
     "drop 1/3 of the patches, last 12 epochs whole"),
    ("small images first (FixRes, progressive sizes)",
     "FixRes: a ResNet-50 trained at 128 px reaches 77.1, and 79.8 trained at 224 px, each fine-tuned for its test size "
     "(arXiv 1906.06423)",
     "two runs: the second starts from the first (`model.weights`) at a larger `model.image_size`; no recipe",
     "28 px, last 12 epochs 42"),
    ("large patches first (FlexiViT)",
     "one model for many patch sizes usually matches models with one size (arXiv 2212.08013)",
     "no option", None),
    ("easy images first (EfficientTrain++)",
     "1.5 to 3.0 times shorter at the same accuracy, from scratch (github.com/LeapLabTHU/EfficientTrain)",
     "no option. We tried its growing augmentation, but not its low-frequency crops",
     "weak to strong augmentation, 40%"),
    ("stop a long schedule early", "the EMA in the paper's logs is best at 60 % of the schedule",
     "`schedule.stop_epoch`, `frugal_*`", "stopped 40%"),
    ("freeze the lower half", "0.1 points below training everything (the paper's Figure 3)",
     "`model.trainable_layers`, `*_half`", "freeze 1/2"),
)  # fmt: skip


def shorter() -> str:
    """Tabulate ways that others have measured, beside the control: the same recipe, complete, but shorter."""
    found = {way.name: way for way in others()}
    rows = [["the same recipe, complete, but shorter", "", "`schedule.epochs`", "the control", ""]]
    for *described, row in SHORTER:
        gain = None if row is None else gain_of(found[row], over_line)
        rows.append([*map(str, described), *(["not tried", ""] if gain is None else [str(gain), _verdict(gain)])])
    head = ["way", "what its authors report", "here", "our study: over the control with the same FLOPs", ""]
    return markdown(head, rows, 4)


def _verdict(gain: Gain) -> str:
    if not gain.told_apart:
        return "no better than the control"
    return "better than the control" if gain.mean > 0 else "loses to the control"


def provenance() -> str:
    """Tabulate where results come from that do not say it themselves."""
    known = yaml.safe_load((RESULTS / "provenance.yaml").read_text(encoding="utf-8"))
    rows = [
        [f"`{name}`" if " " not in name else name, ", ".join(f"`{commit}`" for commit in one["stored"]), one["dates"],
         one["machine"] or "not recorded", one["command"] or "not recorded", one.get("remark", "")]
        for name, one in known.items()
    ]  # fmt: skip
    return markdown(
        ["results", "stored by commit", "dates", "machine", "command", ""], [[*map(str, r)] for r in rows], 6
    )


def statistics() -> str:
    """Explain the standard errors, the bold gains, and what pairing by seed buys."""
    ways_gain = gain_of(others()[0], over_line)
    quantiles = []
    for start, each in shorts().items():
        kinds = ("over_line", "over_whole")
        quantiles += [f"{short_gain(kind, start, next(iter(getattr(each, kind)))).threshold:.2f}" for kind in kinds]
    scatters = [f"{Scatter.pooled(each.over_line.values()).deviation:.2f}" for each in shorts().values()]
    studies = [(ways(), WHOLE), *((list(each.ways.values()), f"{CONTROL}, 100%") for each in shorts().values())]
    paired = [_paired_and_not(mine, whole) for mine, whole in studies]
    return (
        "± is the standard error. It uses the scatter between seeds, pooled over all rows that start from the same tower, as the "
        "towers differ. In the table of short schedules, a gain over the same FLOPs scatters by "
        f"{scatters[0]} points with '{STARTS[0]}' and by {scatters[1]} with '{STARTS[1]}'. Bold gains are larger than a quantile "
        f"of Student's t, chosen so that one such table in {1 / RISK:.0f} would have any wrong bold gain: "
        f"{ways_gain.threshold:.2f} standard errors in the first table and, column by column, "
        f"{listed([*quantiles[::2], *quantiles[1::2]])} in the table of "
        "short schedules. Pairing runs by seed buys nothing here. The difference to the whole schedule scatters by "
        f"{listed(f'{p[0]:.2f}' for p in paired)} points in the three studies if runs with the same seed are paired, and would "
        f"scatter by {listed(f'{p[1]:.2f}' for p in paired)} if they were independent."
    )


def _paired_and_not(mine: Sequence[Way], whole: str) -> tuple[float, float]:
    """Return the standard deviation of the difference to the whole schedule: paired by seed, and as if independent."""
    control = next(way for way in mine if way.name == whole)
    paired, independent = [], []
    for way in mine:
        seeds = sorted(way.top1.keys() & control.top1.keys())
        if way is control or len(seeds) < len(control.top1):
            continue
        own, other = [way.top1[seed] for seed in seeds], [control.top1[seed] for seed in seeds]
        paired.append(variance([a - b for a, b in zip(own, other, strict=True)]))
        independent.append(variance(own) + variance(other))
    return fmean(paired) ** 0.5, fmean(independent) ** 0.5


def listed(parts: Iterable[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def _cells(way: Way) -> list[str]:
    return [way.name, f"{way.share:.0%}", f"{way.minutes:.1f}", f"{way.mean:.1f}", str(len(way.top1))]


def picture(theme: str) -> str:
    shown = [*line(), *others()]
    means = [w.mean for w in shown]
    x_range = min(w.share for w in shown) - 0.03, 1.03
    y_range = float(np.floor(min(means))), float(np.ceil(max(means)))
    canvas = Canvas("narrow", 480, 356, x_range, y_range, left=56, right=24, bottom=44)
    return svg_file(list(_drawing(canvas)), canvas.width, canvas.height, theme)


def _drawing(c: Canvas) -> Iterator[Markup]:
    floor = c.height - c.bottom
    for top1 in np.arange(c.y_range[0], c.y_range[1] + 1):
        yield Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(c.left, c.y(top1), c.width - c.right)
        yield svg_text(c.left - 8, c.y(top1) + 4, f"{top1:.0f} %", "end")
    path = "L".join(f"{c.x(w.share):.1f} {c.y(w.mean):.1f}" for w in line())
    yield Markup('<path class="line accent" d="M{}"/>').format(path)
    for w in line():
        yield _dot("accent", c.x(w.share), c.y(w.mean))
        yield svg_text(c.x(w.share), floor + 18, f"{w.share:.0%}", "middle")
    dots = [(c.x(w.share), c.y(w.mean)) for w in (*others(), *line())]
    for number, (w, (x, y)) in enumerate(zip(others(), dots, strict=False), 1):
        gain = gain_of(w, over_line)
        name = w.name if gain.told_apart and gain.mean > 0 else str(number)
        crowded = any(0 < right - x < LETTER * len(name) + 12 and abs(high - y) < 10 for right, high in dots)
        yield _dot("peer-1", x, y)
        yield svg_text(x, y + 16, name, "start") if crowded else svg_text(x + 6, y + 4, name, "start")
    caption = "training FLOPs; line: complete schedules; named: better than these"
    yield svg_text((c.left + c.width - c.right) / 2, floor + 38, caption, "middle")


def _dot(style: str, x: float, y: float) -> Markup:
    return Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(style, x, y)
