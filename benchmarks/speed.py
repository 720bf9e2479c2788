"""Benchmark tables and picture, from the `fastft bench` results in benchmarks/results.

The pages show the newest result. Results for other processors stand beside it if they have the same measure. Ratios are
medians over paired rounds, with the lowest and the highest round.
"""

from functools import cache

from markupsafe import Markup
from records import FOLDER, document

from beton_tools.base.console import markdown_table as markdown
from fastft.bench.measure import figures
from fastft.bench.page.bars import describe_ratio
from fastft.bench.suite import describe_times
from fastft.machine.bench_result import (
    OURS,
    Case,
    Contender,
    Measure,
    Result,
    Setting,
    Spread,
    ratio,
    read_result,
    spread,
)
from fastft.report.charts import svg_file, svg_text
from fastft.report.page import figure


@cache
def published() -> list[Result]:
    """Return the results by date, the newest first."""
    found = [read_result(path) for path in sorted(FOLDER.glob("*.json")) if "sessions" in document(path.stem)]
    return sorted(found, key=lambda result: result.date, reverse=True)


def find(result: Result, key: str, setting: Setting) -> tuple[Measure, Case] | None:
    measure, case = result.measure(key), result.find(key, **setting)
    return None if measure is None or case is None else (measure, case)


def ranged(contender: Contender) -> str:
    values = spread(contender)
    return f"{figure(values.median)} ({figure(values.low)}-{figure(values.high)})"


# tables ---------------------------------------------------------------------------------------------------------------


def summary() -> str:
    """Make a line per measure and peer, as the figures declare them."""
    result = published()[0]
    rows = []
    declared = sorted(figures().values(), key=lambda f: f.headline != 1)
    for key, row in ((f.key, row) for f in declared for row in f.rows):
        found = find(result, key, dict(row.setting))
        if found and row.last:
            found = found[0], found[0].cases[-1]
        ours, peer = (found[1].contender(name) if found else None for name in (OURS, row.peer))
        if found is None or ours is None or peer is None:
            continue
        measure, case = found
        better = ratio(measure, case, peer)
        assert better is not None
        shown = describe_ratio(better, measure.unit, limit=True)[0] if peer.limit else describe_times(better)
        note = f"<br><small>{', '.join(peer.differences)}</small>" if peer.differences else ""
        rows.append([row.what, f"{ranged(ours)} {measure.unit}", f"{peer.name}: {ranged(peer)}{note}", shown])
    return markdown(["", "fastft", "other", "fastft is better by"], rows)


def processors() -> str:
    """Tabulate the main ratios on every processor that has a result, and those that others measured."""
    columns = [(f.key, *column) for f in figures().values() for column in f.processors]
    rows = []
    for result in published():
        cells = []
        for key, _, peer, _ in columns:
            found = find(result, key, {})
            other = found[1].contender(peer) if found else None
            better = ratio(*found, other) if found and other else None
            cells.append("" if better is None else describe_times(better))
        rows.append([f"{processor(result)}, {result.date}", *cells])
    theirs = document("independent")
    cells = [describe_times(_paired(theirs[rounds], peer)) for *_, peer, rounds in columns]
    rows.append([f"{theirs['cpu'].partition(',')[0]} (AVX-512), {theirs['date']}, measured independently", *cells])
    head = ["images per CPU second, fastft over", *(f"{peer}, {what}" for _, what, peer, _ in columns)]
    count = len(theirs[columns[0][3]]["fastft"])
    return (
        f"{markdown(head, rows)}\n\nThe numbers in brackets are the lowest and the highest round. The last row was measured "
        f"independently, in {count} alternating rounds at commit `{theirs['commit']}`. The machine: {theirs['cpu']}. The files: "
        f"{theirs['images']}. The load: {theirs['load']}."
    )


def _paired(rounds: dict[str, list[float]], peer: str) -> Spread:
    """Return how many times faster fastft is, round by round."""
    return Spread.of([ours / theirs for ours, theirs in zip(rounds["fastft"], rounds[peer], strict=True)])


def order() -> str:
    """Tabulate what the disk is asked for if the file is larger than the memory."""
    result = published()[0]
    rows = []
    setting: Setting = {}
    for key in ("loader.order", "loader.order.requests"):
        measure, case = find(result, key, {}) or (None, None)
        if measure is None or case is None:
            continue
        setting = measure.setting
        for one in case.measured:
            better = ratio(measure, case, one)
            note = f"<br><small>{', '.join(one.differences)}</small>" if one.differences else ""
            shown = describe_times(better) if better else ""
            rows.append([measure.title, one.name + note, ranged(one), measure.unit, shown])
    if not rows:
        return "Not measured yet: `fastft bench loader.order` measures it, as root."
    fixed = ", ".join(f"{key} {value}" for key, value in setting.items())
    table = markdown(["measure", "contender", "median (range)", "unit", "fastft is better by"], rows)
    return f"{table}\n\nMeasured {result.date}: {fixed}."


def processor(result: Result) -> str:
    """Name the processor, with the numbers of its model if they are known, because virtual machines hide its name."""
    machine = result.machine
    wide = [name for name in ("avx512bw", "avx2", "asimd") if name in machine.instruction_sets]
    known = [(name, getattr(machine.processor, name, None)) for name in ("family", "model")]
    numbers = [f"{name} {value}" for name, value in known if value]
    return ", ".join([machine.cpu, *numbers]) + (f" ({wide[0]})" if wide else "")


def machines() -> str:
    """List what each result was measured on, and with which commit and commands."""
    lines = []
    for result in published():
        machine = result.machine
        libraries = ", ".join(f"{name} {version}" for name, version in machine.libraries.items())
        steal = max(s.steal for s in result.sessions)
        load = max(s.load_before for s in result.sessions)
        lines += [
            f"- **{result.date}**, fastft {result.fastft} at commit `{(result.commit or 'unknown')[:12]}`"
            f"{', files changed since' if result.changed else ''}: {machine.cores} cores of {processor(result)}, "
            f"{machine.memory_gib:g} GiB, Linux {machine.kernel}, {machine.system}, Python {machine.python}. "
            f"Images: {result.images.what}, {result.images.mean_kb:g} kB each. Load before a session at most {load:g}, "
            f"stolen CPU time at most {steal:.1%}. {libraries}.",
            *(f"    - `{s.command}`, {s.date[11:16]} UTC, {s.seconds:.0f} s" for s in result.sessions),
        ]
    return "\n".join(lines)


# the picture ----------------------------------------------------------------------------------------------------------


LEFT, WIDTH, BAR, ROW, RIGHT = 144, 330, 15, 21, 64  # pixels


def picture(theme: str) -> str:
    """Draw the loaders' images per CPU second, with the range over the rounds."""
    result = published()[0]
    drawn = []
    for key, (title, names) in ((f.key, f.drawn) for f in figures().values() if f.drawn):
        found = find(result, key, {})
        contenders = [c for name in (OURS, *names) if found and (c := found[1].contender(name))]
        drawn.append((title, sorted(contenders, key=lambda c: -spread(c).median)))
    fastest = max(spread(c).high for _, contenders in drawn for c in contenders)
    parts = [svg_text(0, 15, "Data loaders, images per second of one CPU core", "start")]
    y = 26
    for title, contenders in drawn:
        parts.append(svg_text(LEFT, y + 15, title, "start"))
        y += 22
        for one in contenders:
            parts += _bar(one, y, fastest)
            y += ROW
        y += 8
    parts += [svg_text(0, y + 12 + 16 * k, line, "start") for k, line in enumerate(_captions(result))]
    return svg_file(parts, LEFT + WIDTH + RIGHT, y + 8 + 16 * len(_captions(result)), theme)


def _captions(result: Result) -> list[str]:
    others = sorted({processor(other) for other in published()} - {processor(result)})
    lines = [f"fastft {result.fastft}, {result.date}, one thread on {processor(result)}; lines: range of the rounds"]
    return lines + ([f"{' and '.join(others)}: docs/benchmarks.md"] if others else [])


def _bar(contender: Contender, y: int, fastest: float) -> list[Markup]:
    values = spread(contender)
    width, low, high = (WIDTH * value / fastest for value in (values.median, values.low, values.high))
    style = "accent" if contender.name == "fastft" else ""
    bar = Markup('<rect class="bar {}" x="{}" y="{}" width="{:.1f}" height="{}"/>').format(style, LEFT, y, width, BAR)
    middle, ends = y + BAR / 2, (LEFT + low, LEFT + high)
    caps = Markup("").join(Markup("M{:.1f} {}v6").format(x, middle - 3) for x in ends)
    line = Markup('<path class="axis" d="M{:.1f} {}H{:.1f}{}"/>').format(ends[0], middle, ends[1], caps)
    label = svg_text(LEFT - 8, y + 12, contender.name, "end")
    return [bar, line, label, svg_text(LEFT + max(width, high) + 6, y + 12, figure(values.median), "start")]
