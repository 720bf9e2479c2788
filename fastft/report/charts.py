"""Line charts as SVG, for pages that work without scripts and in print.

Every chart is drawn twice, for desktop and phone width, so that text keeps its size. CSS shows one of the two drawings,
and a script adds the read-out. The template chart.html has the markup, and this file decides what is where.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median_high

from markupsafe import Markup

from fastft.report.page import render

MAX_POINTS = 480  # per line; with more, points would be closer than a pixel
FEW_POINTS = 16  # lines with at most this many points get dots and are never cut off
TICK_STEPS = (1, 2, 2.5, 5, 10)
LABEL_GAP = 8  # pixels between a tick's label and the plot
DIGIT_WIDTH = 8  # pixels, at most, in the fonts of style.css
LETTER_WIDTH, LABEL_HEIGHT, LEADER = 6.4, 15, 22  # pixels: of labels at lines' ends, and of the lines that lead to them
WIDE, NARROW = (520, 290), (340, 250)  # pixels


@dataclass(frozen=True)
class Series:
    """One line.

    `style` names CSS classes: raw, ema, own, accent or peer-1 to peer-10. Lines with reference are dashed, without
    dots.
    """

    name: str
    style: str
    x: Sequence[float]
    y: Sequence[float]
    ranges: Sequence[tuple[float, float]] = ()  # lowest and highest value for every point; () draws no ranges

    @classmethod
    def of(cls, name: str, style: str, points: Iterable[tuple[float, float]]) -> "Series":
        """Return the line through these points (x, y). A chart leaves a line without points out."""
        drawn = list(points)
        return cls(name, style, [x for x, _ in drawn], [y for _, y in drawn])

    @property
    def is_reference(self) -> bool:
        return "reference" in self.style

    @property
    def has_dots(self) -> bool:
        return len(self.x) <= FEW_POINTS and not self.is_reference


@dataclass(frozen=True)
class Chart:
    """One chart. `focus` is the part of the y range to show: top (accuracy) or bottom (loss).

    Outliers on the other side are cut off.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    focus: str = ""
    from_zero: bool = False
    decimals: int = 3
    marks: Sequence[tuple[float, str]] = ()  # vertical lines: x, label
    x_range: tuple[float, float] | None = None  # the points' range by default
    x_ticks: Sequence[float] = ()  # where the x axis has numbers; round numbers by default
    labels_at_ends: bool = False  # names stand at the lines' ends instead of in a legend, for many lines


@dataclass(frozen=True)
class Canvas:
    """The pixel geometry of one drawing, and the data ranges it shows."""

    kind: str
    width: int
    height: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: int = 50
    right: int = 12
    top: int = 12
    bottom: int = 36

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.height - self.bottom - (value - low) / (high - low) * (self.height - self.top - self.bottom)

    def points(self, series: Series) -> list[tuple[float, float]]:
        """Return the line's points in pixels."""
        return [(self.x(x), self.y(y)) for x, y in zip(series.x, series.y, strict=True)]

    @property
    def y_labels(self) -> list[tuple[float, str]]:
        return _labelled(ticks(*self.y_range, 5))

    @property
    def geometry(self) -> str:
        """The plot's edges and ranges, for the script."""
        (x0, x1), (y0, y1) = self.x_range, self.y_range
        edges = {
            "left": self.left, "right": self.width - self.right, "top": self.top, "bottom": self.height - self.bottom,
        }  # fmt: skip
        return json.dumps({**edges, "x0": x0, "x1": x1, "y0": y0, "y1": y1, "width": self.width, "height": self.height})


def render_chart(chart: Chart) -> Markup:
    """Return a <figure> with legend, both drawings and the values for the read-out; empty without points."""
    series = [_thinned(s) for s in chart.series if len(s.x)]
    if not series:
        return Markup("")
    values = {
        "x": chart.x_label,
        "decimals": chart.decimals,
        "series": [{"name": s.name, "style": s.style, "x": list(s.x), "y": list(s.y)} for s in series],
    }
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))
    return render(
        "chart.html", chart=chart, series=series, text=svg_text, x_labels=_x_labels, ends=_ends, gap=LABEL_GAP,
        leader=LEADER, drawings=[_canvas(chart, series, "wide", WIDE), _canvas(chart, series, "narrow", NARROW)],
        values=Markup(text.replace("<", "\\u003c")),  # so that no value can end the <script>
    )  # fmt: skip


def svg_file(parts: Sequence[Markup], width: int, height: int, theme: str) -> str:
    """Return drawings on a transparent background as an SVG file. theme: "light" or "dark"."""
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {0} {1}" width="{0}" height="{1}" '
        'font-family="system-ui, sans-serif"><style>{2}</style>{3}</svg>\n'
    ).format(width, height, render("chart.css", theme=theme), Markup("").join(parts))


def _canvas(chart: Chart, series: Sequence[Series], kind: str, size: tuple[int, int]) -> Canvas:
    xs = [x for s in series for x in s.x]
    ranges = chart.x_range or _span(xs), _y_range(chart, series)
    digits = max((len(label) for _, label in Canvas(kind, *size, *ranges).y_labels), default=0)
    left, right, (width, height) = max(Canvas.left, LABEL_GAP + DIGIT_WIDTH * digits), Canvas.right, size
    if chart.labels_at_ends:
        right = math.ceil(LEADER + LETTER_WIDTH * max(len(s.name) for s in series))
        height = max(height, Canvas.top + Canvas.bottom + LABEL_HEIGHT * len(series))
    return Canvas(kind, width, height, *ranges, left=left, right=right)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers within [low, high]."""
    step = nice_step((high - low) / max(1, count))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def nice_step(rough: float) -> float:
    """Return the next larger 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(s * power for s in TICK_STEPS if s * power >= rough * (1 - 1e-9))


def tick_label(value: float, step: float) -> str:
    if value == 0:
        return "0"
    if step < 1e-3 and abs(value) < 99.5 * step:  # two digits distinguish the value from its neighbours
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    decimals += not math.isclose(step * 10**decimals % 1, 0, abs_tol=1e-6) and step * 10**decimals % 1 < 1 - 1e-6
    return f"{value:,.{decimals}f}"


def _y_range(chart: Chart, series: Sequence[Series]) -> tuple[float, float]:
    """Return the range of all points. With a focus, it is the part around the run's own lines, without references."""
    bounds = [y for s in series for y in (*s.y, *(end for ends in s.ranges for end in ends))]
    low, high = min(bounds), max(bounds)
    own = [s for s in series if not s.is_reference]
    if chart.focus and own:
        middle = median_high(y for s in own for y in s.y)
        # a line's end is never cut off, nor are the points of a short line that is not a reference
        kept = [s.y[-1] for s in series] + [y for s in own if len(s.y) <= FEW_POINTS for y in s.y]
        if chart.focus == "top":
            low = min(max(low, middle - 4 * (high - middle)), *kept)
        else:
            high = max(min(high, middle + 2 * (middle - low)), *kept)
    if chart.from_zero:
        low = min(0.0, low)
    return _span([low, high], rounded=True)


def _span(values: Sequence[float], rounded: bool = False) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low < 1e-12 * max(1.0, abs(high)):
        pad = abs(high) / 10 or 1.0
        low, high = low - pad * (low != 0), high + pad
    if not rounded:
        return low, high
    step = nice_step((high - low) / 5)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def _thinned(s: Series) -> Series:
    """Return means over groups of points if there are more than MAX_POINTS."""
    size = -(-len(s.x) // MAX_POINTS)
    if size <= 1:
        return s
    groups = [slice(k, k + size) for k in range(0, len(s.x), size)]
    x, y = ([sum(values[group]) / len(values[group]) for group in groups] for values in (s.x, s.y))
    return Series(s.name, s.style, x, y)


def _ends(series: Sequence[Series], c: Canvas) -> list[tuple[Series, float, float, float]]:
    """Return each line with its last point and the y of its name, which moves up or down where names would overlap."""
    ends = sorted(((c.y(s.y[-1]), c.x(s.x[-1]), s) for s in series), key=lambda end: end[:2])
    places = apart([y for y, *_ in ends], c.top, c.height - c.bottom)
    return [(s, x, y, at) for (y, x, s), at in zip(ends, places, strict=True)]


def apart(wanted: Sequence[float], low: float, high: float) -> list[float]:
    """Return places at least LABEL_HEIGHT apart, near the wanted ones, which ascend. They end at `high` if they can."""
    places: list[float] = []
    for k, y in enumerate(wanted):
        last = high - LABEL_HEIGHT * (len(wanted) - 1 - k)
        places.append(max(places[-1] + LABEL_HEIGHT if places else low, min(y, last)))
    return places


def _x_labels(chart: Chart, c: Canvas) -> list[tuple[float, str]]:
    """Return the labels for the x axis. Labels from `x_ticks` are kept if there is room, the largest first."""
    if not chart.x_ticks:
        return _labelled(ticks(*c.x_range, 6 if c.kind == "wide" else 4))
    kept: list[float] = []
    for value in sorted(chart.x_ticks, reverse=True):
        if not kept or c.x(kept[-1]) - c.x(value) >= DIGIT_WIDTH * (1 + len(f"{value:g}")):
            kept.append(value)
    return [(value, f"{value:g}") for value in kept]


def _labelled(values: Sequence[float]) -> list[tuple[float, str]]:
    step = values[1] - values[0] if len(values) > 1 else 1.0
    return [(value, tick_label(value, step)) for value in values]


def svg_text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)
