"""A benchmark as one HTML page: sentences, bars, lines, time per image, memory, cores for GPUs, all results, method.

Chapters follow from what the result contains. Nothing that `fastft bench` can measure is required.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from beton_tools.base.console import format_duration
from fastft.bench.measure import CHAPTERS, CORES, LINES, LOADING, SPLIT, TRAINING, figures
from fastft.bench.page.bars import (
    COUNTS,
    Bar,
    BarFigure,
    StackFigure,
    axis_end,
    describe_setting,
    measure_figures,
    range_text,
    rank,
    split_figures,
    whole_setting,
)
from fastft.bench.page.sentences import cores_sentence, describe_demand, headline_of, is_usable, sentences, whole_cases
from fastft.cost.bottleneck import LOOP_PARTS, NAMES
from fastft.cost.cores import Demand, demands
from fastft.machine.bench_result import OURS, Case, Measure, Result, is_disturbed, ratio, skipped_reasons, spread
from fastft.report.charts import Chart, Series, render_chart
from fastft.report.page import joined, named, percent, render_page

AXES = {"threads": "threads", "size": "image size, px"}  # settings that become a line chart's x axis
STEP_PARTS = {part: NAMES.get(part, part) for part in LOOP_PARTS}
RANGES = "The light line through a point spans all rounds, from the lowest to the highest."
PEER_STYLES = 10  # line colours in chart.css
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
    needs, machine = demands(result) if whole_cases(result) else [], result.machine
    cores = f"{machine.cores} core{'s' * (machine.cores != 1)} of {machine.cpu}"
    hardware = [cores, *([describe_gpus(result)] if machine.gpu else [])]
    every = [(m, case, c) for m in result.measures for case in m.cases for c in case.measured]
    return render_page(
        "bench.html",
        title="Throughput benchmark",
        subtitle=" · ".join([*hardware, describe_version(result), result.date[:10]]),
        quick=result.quick,
        missing=describe_missing(result),
        busy=describe_busy(result),
        sentences=sentences(result, needs),
        sections=list(sections(result, needs)),
        # the table with all results: how many times better fastft is, in each row
        rows=[(m, describe_setting(whole_setting(m, case)), c, ratio(m, case, c)) for m, case, c in every],
        spread=spread,
        notes=result.notes,
        commands=list(dict.fromkeys(session.command for session in result.sessions)),
        skipped=list(skipped_reasons(result)),
        facts=machine_facts(result),
    )


# what was measured where ----------------------------------------------------------------------------------------------


def describe_gpus(result: Result) -> str:
    return f"{max(1, result.machine.gpus)} × {result.machine.gpu}" if result.machine.gpu else "none"


def describe_version(result: Result) -> str:
    commit = f", commit {result.commit[:8]}" if result.commit else ""
    return f"fastft {result.fastft}{commit}{' with local changes' * bool(result.changed)}"


def machine_facts(result: Result) -> dict[str, str]:
    """Return the rows for the machine table."""
    m, p, sessions = result.machine, result.machine.processor, result.sessions
    before, after = (between([s.load_before for s in sessions]), between([s.load_after for s in sessions]))
    dates = sorted(s.date[:16].replace("T", " ") for s in sessions)
    last = dates[-1].removeprefix(f"{dates[0][:10]} ")
    times = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {last}"
    foreign = [measure.foreign for measure in result.measures if measure.foreign is not None]
    betons = [(digest, f".beton of {name}") for s in sessions for name, digest in s.betons.items()]
    digests = [f"{digest[:16]}… ({what})" for digest, what in [(result.images.sha256, "images"), *betons] if digest]
    facts = {
        "processor": m.cpu,
        # the model by its numbers, because virtual machines hide its name
        "processor model": "" if p is None else joined(
            p.vendor, named({"family": p.family, "model": p.model, "stepping": p.stepping, "microcode": p.microcode}),
            f"{p.threads_per_core} threads per core" if p.threads_per_core else "", named({"governor": p.governor}),
            "virtual machine" if p.is_virtual else "",
        ),
        "instruction sets": ", ".join(m.instruction_sets),
        "cores": str(m.cores),
        "memory": f"{m.memory_gib:g} GiB",
        "disk": m.disk or "",
        "GPU": describe_gpus(result),
        "driver": m.driver or "",
        "system": joined(m.system, m.kernel),
        "load": f"{before} before, {after} after, with the benchmark's own processes",
        "other load": f"{between(foreign)} cores kept busy by other programs, by measure" if foreign else "",
        "steal": f"at most {percent(max(s.steal for s in sessions))} of CPU time went to other guests of the host",
        "version": describe_version(result),
        "measured": f"{times} UTC, {format_duration(sum(s.seconds for s in sessions))}",
        "images": f"{result.images.what}, {result.images.mean_kb:.0f} kB each",
        "SHA-256": ", ".join(dict.fromkeys(digests)),
        "Python": m.python,
        "libraries": named(m.libraries),
        "JPEG libraries": named(m.codecs),
        "all packages": f"{len(m.packages)}, listed in the JSON file" if m.packages else "",
    }  # fmt: skip
    return {name: text for name, text in facts.items() if text}


def describe_missing(result: Result, path: Path = Path("FILE.json")) -> str:
    """Say what is missing from a run that ended early, and how to add it; empty if it is complete. path: the result.

    A measure may have some of its cases, which are then named.
    """
    if not result.missing:
        return ""
    count, first, keys = len(result.missing), result.missing[0], []
    for key in result.missing:
        measured = "; ".join(describe_setting(case.setting) for case in m.cases) if (m := result.measure(key)) else ""
        keys.append(f"{key} (except {measured})" if measured else key)
    return (
        f"The run ended early, so {count} measure{'s' * (count != 1)} {'is' if count == 1 else 'are'} missing: "
        f"{', '.join(keys)}. To add one: fastft bench {first} --add {path}, with the same images and options."
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
    return range_text(low, high) or low


# chapters -------------------------------------------------------------------------------------------------------------


def sections(result: Result, needs: Sequence[Demand]) -> Iterator[View]:
    """Yield the chapters that have something to show."""
    # left out: the same rounds are shown per CPU second, which with one thread says the same as wall time
    shown = [m for m in result.measures if line_axis(m) or result.measure(f"{m.key}.core") is None]
    measures = sorted(shown, key=lambda m: headline_of(m) != 1)
    for chapter in CHAPTERS:
        # a measure that this version does not know is among the first
        own = [m for m in measures if (known.chapter if (known := figures().get(m.key)) else LOADING) == chapter]
        view: View = {"title": chapter, "measures": [], "charts": [], "cores": [], "notes": []}
        if chapter == LINES:
            view |= {"charts": line_charts(result), "notes": [RANGES]}
        elif chapter == CORES:
            view |= {"cores": list(cores_views(result, needs)), "notes": CORES_NOTES}
        elif chapter == SPLIT:
            view["measures"] = [_view(m, stacks=stacks) for m in own if (stacks := split_figures(m))]
        else:
            view["measures"] = [*bars(own), *(step_splits(own) if chapter == TRAINING else [])]
        if view["measures"] or view["charts"] or view["cores"]:
            yield view


def bars(measures: Sequence[Measure]) -> Iterator[View]:
    """Draw the measures that are not drawn as lines. If several have the same title, each title names what differs."""
    shown = [m for m in measures if line_axis(m) is None and any(case.measured for case in m.cases)]
    for m in shown:
        settings = [o.setting for o in shown if o.title == m.title]
        own = {k: v for k, v in m.setting.items() if k not in COUNTS and any(o.get(k) != v for o in settings)}
        yield _view(m, measure_figures(m), joined(m.title, describe_setting(own)))


def step_splits(measures: Sequence[Measure]) -> Iterator[View]:
    """Draw the parts of the time for training steps."""
    for m in measures:
        if stacks := split_figures(m, STEP_PARTS, "seconds of a round"):
            notes = ["The training process's wall time by part."]
            yield {"title": f"{m.title}, by part", "notes": notes, "figures": [], "stacks": stacks}


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
    names = dict.fromkeys(
        c.name for m in result.measures for case in m.cases for c in case.contenders if c.name != OURS
    )
    # CSS classes, so that a contender has the same colour in all charts
    styles = {OURS: "accent"} | {name: f"peer-{1 + k % PEER_STYLES}" for k, name in enumerate(names)}
    charts = []
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
    names = dict.fromkeys(c.name for case in cases for c in case.measured)
    lines = [line_over(axis, cases, name, name, styles[name]) for name in names]
    series = sorted(lines, key=lambda line: -line.y[-1])
    if axis == "threads" and measure.better == "higher" and OURS in names:
        own = next(line for line in lines if line.name == OURS)
        xs = sorted({x for line in lines for x in line.x if x <= cores})
        perfect = [(x, own.y[0] * x / own.x[0]) for x in xs]
        series.append(Series.of(f"{OURS}, perfect scaling", "accent reference", perfect))
    return chart_over(axis, measure, series, rest)


def line_over(axis: str, cases: Sequence[Case], contender: str, name: str, style: str) -> Series:
    """Draw a contender's results over the setting `axis`, with the range over the rounds."""
    found = [(float(case.setting[axis]), spread(c)) for case in cases if (c := case.contender(contender))]
    found.sort(key=lambda point: point[0])
    line = Series.of(name, style, ((x, value.median) for x, value in found))
    return replace(line, ranges=[(value.low, value.high) for _, value in found])


def chart_over(axis: str, measure: Measure, series: Sequence[Series], rest: str = "") -> Chart:
    """rest: settings that the title names."""
    xs, title = sorted({x for line in series for x in line.x}), joined(measure.title, rest)
    return Chart(title, AXES[axis], measure.unit, series, from_zero=True, decimals=1, x_ticks=xs, labels_at_ends=True)


def cores_views(result: Result, needs: Sequence[Demand]) -> Iterator[View]:
    """Draw a figure per kind of GPU for each recipe, all on one axis."""
    for _, measure, case in whole_cases(result)[:1]:
        able = sorted(filter(is_usable, case.measured), key=lambda c: rank(measure, c))
        for recipe in dict.fromkeys(d.recipe for d in needs if able):
            of_recipe = [d for d in needs if d.recipe == recipe]
            rows = [(d, [Bar(c.name, d.cores(spread(c).median)) for c in able]) for d in of_recipe]
            highest = max(bar.spread.high for _, row in rows for bar in row)
            end = axis_end(max([highest, *(d.machine_cores for d in of_recipe if d.machine_cores < NEAR * highest)]))
            busiest = max(of_recipe, key=lambda d: d.images_per_second.median)
            drawn = [
                BarFigure(
                    f"{d.gpus} × {d.gpu}", f"cores for {describe_demand(d)}", "", row, end,
                    limit=d.machine_cores or None, is_compact=True,
                )
                for d, row in rows
            ]  # fmt: skip
            yield {"recipe": recipe, "sentence": cores_sentence(result, busiest), "figures": drawn}
