"""A benchmark as one HTML page: sentences, bars, lines, time per image, memory, cores for GPUs, all results, method.

Chapters follow from what the result contains. Nothing that `fastft bench` can measure is required.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from beton_tools.base.console import format_duration
from fastft.bench.measure import CHAPTERS, CORES, LINES, LOADING, SPLIT, TRAINING, figures
from fastft.bench.page.bars import (
    Bar,
    BarFigure,
    StackFigure,
    axis_end,
    describe_setting,
    measure_figures,
    rank,
    split_figures,
)  # fmt: skip
from fastft.bench.page.sentences import (
    cores_needed,
    cores_sentence,
    is_headline,
    is_usable,
    sentences,
    whole_cases,
    whole_range,
)
from fastft.cost.bottleneck import LOOP_PARTS, NAMES
from fastft.cost.cores import Demand, demands
from fastft.machine.bench_result import (
    OURS,
    Case,
    Measure,
    Processor,
    Result,
    Spread,
    is_disturbed,
    ratio,
    skipped_reasons,
    spread,
)
from fastft.report.charts import Chart, Series, render_chart
from fastft.report.page import percent, render_page

AXES = {"threads": "threads", "size": "image size, px"}  # settings that become a line chart's x axis
STEP_PARTS = {part: NAMES.get(part, part) for part in LOOP_PARTS}
RANGES = "The light line through a point spans all rounds, from the lowest to the highest."
PEER_STYLES = 10  # line colours in chart.css
COUNTS = ("images", "rounds")  # settings that do not make it a different measurement
NEAR = 1.25  # the axis includes a usual machine's cores up to this multiple of the highest bar
MOST_TICKED = 1e6  # on the x axis
CORES_NOTES = (
    "Cores needed: the images per second of the training step, divided by the images per second that one core of the processor "
    "measured here prepares with the whole recipe, rounded up. The light line spans the modelled speeds of the step. The "
    "dashed line shows the physical cores of a usual cloud machine with eight of these GPUs (p3.16xlarge, p4d.24xlarge, "
    "p5.48xlarge). A loader that needs more lets the GPUs wait.",
    "Step speeds are modelled by fastft cost unless they say measured. On a machine with GPUs, fastft decodes on the "
    "CPU and augments on the GPU, so it needs fewer cores than shown here.",
)


# What the template bench.html shows. A section is a chapter: measures, charts (title, drawing), cores and notes.
# A measure has a title, notes, and figures or stacks.
View = dict[str, Any]


def render_bench(result: Result) -> str:
    """Return the page for one result as HTML."""
    needs = demands(result) if whole_cases(result) else []
    measures = sorted((m for m in result.measures if not is_repeated(m, result)), key=lambda m: not is_headline(m))
    sections = [
        section(chapter, result, [m for m in measures if chapter_of(m) == chapter], needs) for chapter in CHAPTERS
    ]
    return render_page(
        "bench.html",
        title="Throughput benchmark",
        subtitle=" · ".join(describe_result(result)),
        quick=result.quick,
        missing=describe_missing(result),
        busy=describe_busy(result),
        sentences=sentences(result, needs),
        sections=[s for s in sections if s["measures"] or s["charts"] or s["cores"]],
        rows=list(table_rows(result)),
        notes=result.notes,
        commands=list(dict.fromkeys(session.command for session in result.sessions)),
        skipped=list(skipped_reasons(result)),
        facts=machine_facts(result),
    )


# what was measured where ----------------------------------------------------------------------------------------------


def describe_result(result: Result) -> list[str]:
    """Describe machine, version and date in a few words each."""
    m = result.machine
    hardware = [f"{m.cores} core{'s' * (m.cores != 1)} of {m.cpu}", *([describe_gpus(result)] if m.gpu else [])]
    return [*hardware, describe_version(result), result.date[:10]]


def describe_gpus(result: Result) -> str:
    return f"{max(1, result.machine.gpus)} × {result.machine.gpu}" if result.machine.gpu else "none"


def describe_version(result: Result) -> str:
    commit = f", commit {result.commit[:8]}" if result.commit else ""
    return f"fastft {result.fastft}{commit}{' with local changes' * bool(result.changed)}"


def machine_facts(result: Result) -> dict[str, str]:
    """Return the rows for the machine table."""
    m, sessions = result.machine, result.sessions
    before, after = (between([s.load_before for s in sessions]), between([s.load_after for s in sessions]))
    dates = sorted(s.date[:16].replace("T", " ") for s in sessions)
    last = dates[-1].removeprefix(f"{dates[0][:10]} ")
    times = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {last}"
    facts = {
        "processor": m.cpu,
        "processor model": describe_processor(m.processor) if m.processor else "",
        "instruction sets": ", ".join(m.instruction_sets),
        "cores": str(m.cores),
        "memory": f"{m.memory_gib:g} GiB",
        "disk": m.disk or "",
        "GPU": describe_gpus(result),
        "driver": m.driver or "",
        "system": ", ".join(filter(None, (m.system, m.kernel))),
        "load": f"{before} before, {after} after, with the benchmark's own processes",
        "other load": describe_foreign(result),
        "steal": f"at most {percent(max(s.steal for s in sessions))} of CPU time went to other guests of the host",
        "version": describe_version(result),
        "measured": f"{times} UTC, {format_duration(sum(s.seconds for s in sessions))}",
        "images": f"{result.images.what}, {result.images.mean_kb:.0f} kB each",
        "SHA-256": ", ".join(f"{digest[:16]}… ({name})" for name, digest in checksums(result)),
        "Python": m.python,
        "libraries": ", ".join(f"{name} {version}" for name, version in m.libraries.items()),
        "JPEG libraries": ", ".join(f"{name} {version}" for name, version in m.codecs.items()),
        "all packages": f"{len(m.packages)}, listed in the JSON file" if m.packages else "",
    }
    return {name: text for name, text in facts.items() if text}


def describe_processor(p: Processor) -> str:
    """Describe the model by its numbers, because virtual machines hide its name."""
    numbers = {"family": p.family, "model": p.model, "stepping": p.stepping, "microcode": p.microcode}
    known = [f"{name} {value}" for name, value in numbers.items() if value]
    known += [f"{p.threads_per_core} threads per core"] if p.threads_per_core else []
    known += [f"governor {p.governor}"] if p.governor else []
    return ", ".join([*filter(None, [p.vendor]), *known, *(["virtual machine"] if p.is_virtual else [])])


def describe_foreign(result: Result) -> str:
    known = [m.foreign for m in result.measures if m.foreign is not None]
    return f"{between(known)} cores kept busy by other programs, by measure" if known else ""


def checksums(result: Result) -> list[tuple[str, str]]:
    """Return (what, SHA-256) for the images and for the .beton files, each once."""
    images = [("images", result.images.sha256)] if result.images.sha256 else []
    betons = {(f".beton of {name}", digest): None for s in result.sessions for name, digest in s.betons.items()}
    return images + list(betons)


def describe_missing(result: Result, path: Path = Path("FILE.json")) -> str:
    """Say what is missing from a run that ended early, and how to add it; empty if it is complete. path: the result.

    A measure may have some of its cases, which are then named.
    """
    if not result.missing:
        return ""
    count, first, named = len(result.missing), result.missing[0], []
    for key in result.missing:
        measured = "; ".join(describe_setting(case.setting) for case in m.cases) if (m := result.measure(key)) else ""
        named.append(f"{key} (except {measured})" if measured else key)
    return (
        f"The run ended early, so {count} measure{'s' * (count != 1)} {'is' if count == 1 else 'are'} missing: "
        f"{', '.join(named)}. To add one: fastft bench {first} --add {path}, with the same images and options."
    )


def describe_busy(result: Result) -> str:
    """Return a warning if other programs used the cores, otherwise an empty text."""
    load, cores = max(s.load_before for s in result.sessions), result.machine.cores
    where = f"{cores} core{'s' * (cores != 1)}"
    disturbed = {m.title: m.foreign or 0.0 for m in result.measures if is_disturbed(m, cores)}
    found = [f"the load was up to {load:.1f} on {where} before the benchmark began"] if load > cores / 2 else []
    if disturbed:
        most = max(disturbed, key=lambda title: disturbed[title])
        found.append(
            f"they kept up to {disturbed[most]:.1f} of {where} busy while {len(disturbed)} of {len(result.measures)} measures "
            f"ran, most in “{most}”"
        )
    if not found:
        return ""
    return (
        f"Other programs were running: {', and '.join(found)}. This affects all contenders in a round alike, so ratios are "
        "more reliable than absolute figures."
    )


def between(values: Sequence[float]) -> str:
    """Format the lowest and highest load."""
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low}–{high}"


# chapters -------------------------------------------------------------------------------------------------------------


def section(chapter: str, result: Result, measures: Sequence[Measure], needs: Sequence[Demand]) -> View:
    shown: View = {"title": chapter, "measures": [], "charts": [], "cores": [], "notes": []}
    if chapter == LINES:
        return shown | {"charts": line_charts(result), "notes": [RANGES]}
    if chapter == CORES:
        return shown | {"cores": cores_views(result, needs), "notes": CORES_NOTES}
    if chapter == SPLIT:
        return shown | {"measures": splits(measures)}
    return shown | {"measures": [*bars(measures), *(step_splits(measures) if chapter == TRAINING else [])]}


def chapter_of(measure: Measure) -> str:
    """Return the chapter of the declared figure; a measure that this version does not know is among the first."""
    declared = figures().get(measure.key)
    return declared.chapter if declared else LOADING


def is_repeated(measure: Measure, result: Result) -> bool:
    """Return True if the same rounds are shown per CPU second, which with one thread says the same as wall time."""
    return line_axis(measure) is None and result.measure(f"{measure.key}.core") is not None


def bars(measures: Sequence[Measure]) -> list[View]:
    """Draw the measures that are not drawn as lines. If several have the same title, each title names what differs."""
    shown = [m for m in measures if line_axis(m) is None and any(case.measured for case in m.cases)]
    return [_view(m, measure_figures(m), told_apart(m, [o for o in shown if o.title == m.title])) for m in shown]


def told_apart(measure: Measure, same: Sequence[Measure]) -> str:
    """Return the title with the settings that other measures with this title do not have."""
    own = {k: v for k, v in measure.setting.items() if any(o.setting.get(k) != v for o in same) and k not in COUNTS}
    return ", ".join(filter(None, (measure.title, describe_setting(own))))


def splits(measures: Sequence[Measure]) -> list[View]:
    """Return the parts of an image's time."""
    return [_view(m, stacks=found) for m in measures if (found := split_figures(m))]


def step_splits(measures: Sequence[Measure]) -> list[View]:
    """Return the parts of the time for training steps."""
    found = [(m, split_figures(m, STEP_PARTS, "seconds of a round")) for m in measures]
    about = "The training process's wall time by part."
    titled = [(f"{m.title}, by part", stacks) for m, stacks in found if stacks]
    return [{"title": title, "notes": [about], "figures": [], "stacks": stacks} for title, stacks in titled]


def _view(
    measure: Measure, figures: Sequence[BarFigure] = (), title: str = "", stacks: Sequence[StackFigure] = ()
) -> View:
    notes = [measure.about, describe_setting(measure.setting)]
    if measure.foreign is not None:
        notes.append(f"Other programs kept {measure.foreign:.2f} cores busy meanwhile.")
    return {"title": title or measure.title, "notes": notes, "figures": figures, "stacks": stacks}


def line_axis(measure: Measure) -> str | None:
    """Return the setting on the x axis of a measure's line chart, or None if the measure is drawn as bars."""
    for axis in AXES:
        values = {case.setting.get(axis) for case in measure.cases if case.measured}
        if len(values) > 1 and all(isinstance(value, int | float) and 0 < value < MOST_TICKED for value in values):
            return axis
    return None


def line_charts(result: Result) -> list[tuple[str, Markup]]:
    """Draw a chart for each measure over threads or sizes, and for each combination of its other settings."""
    styles, charts = contender_styles(result), []
    for measure in result.measures:
        if axis := line_axis(measure):
            groups: dict[str, list[Case]] = {}
            for case in measure.cases:
                rest = describe_setting({k: v for k, v in case.setting.items() if k != axis})
                groups.setdefault(rest, []).append(case)
            drawn = [line_chart(measure, axis, *group, styles, result.machine.cores) for group in groups.items()]
            charts += [(chart.title, render_chart(chart)) for chart in drawn]
    return charts


def line_chart(
    measure: Measure, axis: str, rest: str, cases: Sequence[Case], styles: dict[str, str], cores: int
) -> Chart:
    """Draw all contenders' lines, and over threads what perfect scaling would be, up to the number of cores."""
    points: dict[str, list[tuple[float, Spread]]] = {}
    for case in sorted(cases, key=lambda c: float(c.setting[axis])):
        for contender in case.measured:
            points.setdefault(contender.name, []).append((float(case.setting[axis]), spread(contender)))
    order = sorted(points, key=lambda name: -points[name][-1][1].median)
    series = [spread_series(name, styles[name], points[name]) for name in order]
    xs = sorted({float(case.setting[axis]) for case in cases if case.measured})
    if axis == "threads" and measure.better == "higher" and OURS in points:
        first, one = points[OURS][0]
        scaled = [x for x in xs if x <= cores]
        perfect = [one.median * x / first for x in scaled]
        series.append(Series(f"{OURS}, perfect scaling", "accent reference", scaled, perfect))
    title = ", ".join(filter(None, (measure.title, rest)))
    return Chart(title, AXES[axis], measure.unit, series, from_zero=True, decimals=1, x_ticks=xs, labels_at_ends=True)


def spread_series(name: str, style: str, points: Sequence[tuple[float, Spread]]) -> Series:
    xs, ys = [x for x, _ in points], [s.median for _, s in points]
    return Series(name, style, xs, ys, [(s.low, s.high) for _, s in points])


def contender_styles(result: Result) -> dict[str, str]:
    """Return CSS classes for lines, so that a contender has the same colour in all charts."""
    names = dict.fromkeys(
        c.name for m in result.measures for case in m.cases for c in case.contenders if c.name != OURS
    )
    return {OURS: "accent"} | {name: f"peer-{1 + k % PEER_STYLES}" for k, name in enumerate(names)}


def cores_views(result: Result, needs: Sequence[Demand]) -> list[View]:
    """Draw a figure per kind of GPU for each recipe, all on one axis."""
    views = []
    for _, measure, case in whole_cases(result)[:1]:
        able = sorted(filter(is_usable, case.measured), key=lambda c: rank(measure, c))
        for recipe in dict.fromkeys(d.recipe for d in needs if able):
            of_recipe = [d for d in needs if d.recipe == recipe]
            rows = [(d, [Bar(c.name, cores_needed(d, c)) for c in able]) for d in of_recipe]
            highest = max(bar.spread.high for _, row in rows for bar in row)
            end = axis_end(max([highest, *(d.machine_cores for d in of_recipe if d.machine_cores < NEAR * highest)]))
            busiest = max(of_recipe, key=lambda d: d.images_per_second.median)
            told = Markup("").join(cores_sentence(result, busiest))
            views.append(
                {"recipe": recipe, "sentence": told, "figures": [cores_figure(d, row, end) for d, row in rows]}
            )
    return views


def cores_figure(demand: Demand, bars: Sequence[Bar], end: float) -> BarFigure:
    how = "measured" if demand.measured else "modelled"
    return BarFigure(
        f"{demand.gpus} × {demand.gpu}", f"cores for {whole_range(demand.images_per_second)} images/s ({how})", "", bars, end,
        limit=demand.machine_cores or None, is_compact=True,
    )  # fmt: skip


def table_rows(result: Result) -> Iterator[View]:
    """Return the rows in the table with all results. ratio: how many times better fastft is."""
    for measure in result.measures:
        for case in measure.cases:
            setting = {k: v for k, v in (measure.setting | case.setting).items() if k not in COUNTS}
            for c in case.measured:
                compared = ratio(measure, case, c)
                yield {
                    "measure": measure.title, "setting": describe_setting(setting), "contender": c.name, "spread": spread(c),
                    "unit": measure.unit, "rounds": len(c.rounds), "ratio": compared.median if compared else None,
                }  # fmt: skip
