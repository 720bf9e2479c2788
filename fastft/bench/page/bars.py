"""Bars on benchmark pages: contenders with the range over their rounds, and the parts of a whole stacked in one bar.

The template bench_parts.html draws them as HTML tables, so that text keeps its size on every screen and a screen reader
finds rows.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from fastft.machine.bench_result import Case, Contender, Measure, Setting, Spread, ratio, spread
from fastft.report.charts import nice_step, tick_label
from fastft.report.page import figure

LEVEL = 0.005  # a ratio this close to 1 counts as level
TICKS = 4
HEADROOM = 1.02  # the axis ends at this multiple of the highest round
# words for a better and for a worse fastft result, by unit
COMPARATIVES = {"MB": ("smaller", "larger"), "GB": ("smaller", "larger"), "share": ("higher", "lower")}
RATES = ("faster", "slower")
# settings in words, and settings that are counted: 1 thread, 2 threads
SETTING_WORDS = {"size": "{} px", "kB per image": "{} kB per image", "file MB": "file of {} MB"}
COUNTED = ("threads", "images", "rounds", "samples", "files", "gpus")
COUNTS = ("images", "rounds")
BANDWIDTH, BANDWIDTH_LIMIT = "bandwidth_share", "at the memory's bandwidth"
# a round's other figures: shares by key, amounts by the end of the key
SHARES = {"mfu": "MFU", "waiting": "waiting for data"}
FIGURE_UNITS = {"mb": "MB", "gb": "GB", "ms": "ms"}


class Bar(NamedTuple):
    """One row.

    notes: how the work differs, and more figures from the rounds. file, letter: identify compared files, from 1.
    """

    name: str
    spread: Spread
    rounds: int = 1
    notes: Sequence[str] = ()
    ratio: str = ""
    ratio_range: str = ""
    is_limit: bool = False
    file: int = 0
    letter: str = ""


class BarFigure(NamedTuple):
    """Bars on one axis from 0 to `end`.

    better: "higher" or "lower", or "" to leave it out. compared: the ratios' heading. limit: draws a line across the
    bars at this value. is_compact: one line per bar, with a whole number.
    """

    title: str
    unit: str
    better: str
    bars: Sequence[Bar]
    end: float
    skipped: Sequence[Contender] = ()
    compared: str = "fastft is"
    limit: float | None = None
    is_compact: bool = False
    setting: str = ""

    @property
    def ticks(self) -> list[tuple[str, float]]:
        """Return labels and their positions in percent."""
        step = nice_step(self.end / TICKS)
        return [(tick_label(k * step, step), 100 * k * step / self.end) for k in range(int(self.end / step) + 1)]

    def place(self, value: float) -> str:
        """Return the position of a value on the axis, as CSS."""
        return f"{100 * min(max(value / self.end, 0), 1):.2f}%"


def axis_end(highest: float) -> float:
    return HEADROOM * highest if highest > 0 else 1.0


def measure_figures(measure: Measure) -> list[BarFigure]:
    """Return a figure per case, all on one axis. The best contender comes first, limits come last."""
    cases = [(case, case_bars(measure, case)) for case in measure.cases if case.measured]
    end = axis_end(max((bar.spread.high for _, bars in cases for bar in bars), default=0.0))
    return [
        BarFigure(
            describe_setting(varied(case, [c for c, _ in cases])), measure.unit, measure.better, bars, end, case.skipped
        )
        for case, bars in cases
    ]


def case_bars(measure: Measure, case: Case) -> list[Bar]:
    bars = []
    for c in sorted(case.measured, key=lambda c: (c.limit, rank(measure, c))):
        ratios = describe_ratio(ratio(measure, case, c), measure.unit, c.limit)
        bars.append(Bar(c.name, spread(c), len(c.rounds), [*c.differences, *extra_figures(c)], *ratios, c.limit))
        if (share := median_figures(c).get(BANDWIDTH)) and measure.better == "lower":
            fastest = Spread.of([spread(c).median * share])
            bars.append(Bar(BANDWIDTH_LIMIT, fastest, ratio=f"{share:.0%} of it", is_limit=True))
    return bars


def rank(measure: Measure, contender: Contender) -> float:
    """Return a sort key that is lowest for a measure's best contender."""
    return spread(contender).median * (-1 if measure.better == "higher" else 1)


# numbers in words -----------------------------------------------------------------------------------------------------


def describe_ratio(value: Spread | None, unit: str, limit: bool = False) -> tuple[str, str]:
    """Say how fastft compares, with the range over the rounds: ("6.0× faster", "5.8–6.2"); empty without a ratio."""
    if value is None:
        return "", ""
    if limit and value.high <= 1:
        return f"{value.median:.0%} of it", range_text(f"{value.low:.0%}", f"{value.high:.0%}")
    if limit:  # a limit that a round exceeded is none, so the ratio is not written as a share of it
        low, middle, high = times(value)
        return f"{middle}× it", range_text(low, high)
    better, worse = COMPARATIVES.get(unit, RATES)
    if value.median < 1 and value.low > 0:
        value, better = Spread(1 / value.median, 1 / value.high, 1 / value.low), worse
    low, middle, high = times(value)
    return ("level" if abs(value.median - 1) < LEVEL else f"{middle}× {better}"), range_text(low, high)


def times(value: Spread) -> tuple[str, str, str]:
    """Format the lowest, median and highest ratio with the same number of decimals."""
    decimals = 0 if value.median >= 100 else 1 if value.median >= 1.995 else 2
    return f"{value.low:,.{decimals}f}", f"{value.median:,.{decimals}f}", f"{value.high:,.{decimals}f}"


def range_text(low: str, high: str) -> str:
    return "" if low == high else f"{low}–{high}"


def extra_figures(contender: Contender) -> list[str]:
    """List medians for the rounds' other figures, such as ["MFU 25.8 %", "read 71.0 MB"], without seconds by part."""
    known = median_figures(contender)
    shares = [f"{name} {100 * known[key]:.1f} %" for key, name in SHARES.items() if key in known]
    amounts = []
    for key, value in known.items():
        label, _, unit = key.rpartition("_")
        if unit in FIGURE_UNITS:
            amounts.append(f"{label.replace('_', ' ') or 'moves'} {figure(value)} {FIGURE_UNITS[unit]}")
    return shares + amounts


def median_figures(contender: Contender) -> dict[str, float]:
    names = dict.fromkeys(name for r in contender.rounds for name in r.figures)
    return {name: median(r.figures[name] for r in contender.rounds if name in r.figures) for name in names}


def whole_setting(measure: Measure, case: Case) -> Setting:
    """Return all settings but the counts, which do not make it a different measurement."""
    return {k: v for k, v in (measure.setting | case.setting).items() if k not in COUNTS}


def varied(case: Case, cases: Sequence[Case]) -> Setting:
    """Return the settings that are not the same in all cases, or all settings if there is only one case."""
    return {
        k: v for k, v in case.setting.items() if len(cases) == 1 or any(other.setting.get(k) != v for other in cases)
    }


def describe_setting(setting: Setting) -> str:
    """Describe a setting in words: 224 px, batch 64, 2 threads."""

    def word(key: str, value: str | int | float) -> str:
        if isinstance(value, str):
            return value
        shown = f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)
        if key in COUNTED:
            return f"{shown} {key if value != 1 else key.removesuffix('s')}"
        return SETTING_WORDS[key].format(shown) if key in SETTING_WORDS else f"{key.replace('_', ' ')} {shown}"

    return ", ".join(word(key, value) for key, value in setting.items())


# parts of a whole -----------------------------------------------------------------------------------------------------

Stack = tuple[str, dict[str, float]]  # a contender and the value of each part


class StackFigure(NamedTuple):
    """Stacked bars on one axis from 0 to `end`. colours: of the parts in order, from 1."""

    title: str
    unit: str
    stacks: Sequence[Stack]
    colours: dict[str, int]
    end: float


def split_figures(measure: Measure, names: Mapping[str, str] | None = None, unit: str = "") -> list[StackFigure]:
    """Return a figure per case that shows the rounds' figures as parts, all on one axis.

    names: titles of the figures that are parts, in order; None takes all figures.
    """

    def parts(contender: Contender) -> dict[str, float]:
        known = median_figures(contender)
        return known if names is None else {title: known[key] for key, title in names.items() if key in known}

    cases = [(case, [(c.name, of) for c in case.measured if (of := parts(c))]) for case in measure.cases]
    cases = [(case, stacks) for case, stacks in cases if stacks]
    every = [of for _, stacks in cases for _, of in stacks]
    end = axis_end(max((sum(of.values()) for of in every), default=0.0))
    colours = {part: k for k, part in enumerate(dict.fromkeys(part for of in every for part in of), 1)}
    return [
        StackFigure(
            describe_setting(varied(case, [c for c, _ in cases])), unit or measure.unit,
            sorted(stacks, key=lambda stack: sum(stack[1].values())), colours, end,
        )
        for case, stacks in cases
    ]  # fmt: skip
