"""Several benchmark results on one page, to compare machines, dates or commits measure by measure."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from string import ascii_uppercase
from typing import Any, NamedTuple

from markupsafe import Markup

from beton_tools.base.atomic import write_text
from beton_tools.base.errors import UserError
from fastft.bench.measure import CPU_RATE, WALL_RATE
from fastft.bench.page.bars import Bar, BarFigure, axis_end, describe_setting, range_text, times, whole_setting
from fastft.bench.page.one import (
    chart_over,
    describe_gpus,
    describe_version,
    line_axis,
    line_over,
    machine_facts,
    render_bench,
)
from fastft.bench.page.sentences import USUAL, amount, headline_of, listed, multiple
from fastft.bench.page.verdicts import Paired, Verdict, verdicts
from fastft.machine.bench_result import OURS, Case, Contender, Measure, Result, Spread, ratio, spread
from fastft.report.charts import Chart, render_chart
from fastft.report.page import colour, facts, joined, render_page

NUMBERS = ("rounds", "ratio", "low", "high", "p_value", "rounds_needed", "below")  # of a verdict
MOST_FILES = len(ascii_uppercase)
# if these facts differ, it is not fastft alone that was compared
SAME_FACTS = {
    "processor": "processor", "processor model": "processor model", "cores": "number of cores", "GPU": "GPU",
    "images": "set of images", "Python": "version of Python",
}  # fmt: skip
DRIFT = 0.03  # by how much the other libraries' speeds may differ before this is said


class File(NamedTuple):
    """One of the compared results: its letter, its number from 1, and what sets it apart."""

    letter: str
    number: int
    what: str
    result: Result

    @property
    def mark(self) -> Markup:
        return Markup('<span class="file {}">{}</span>').format(colour(self.number - 1), self.letter)


class Shared(NamedTuple):
    """A case that at least two files have, with the measure and case from each of these files."""

    found: Sequence[tuple[File, Measure, Case]]

    @property
    def measure(self) -> Measure:
        return self.found[0][1]

    @property
    def setting(self) -> str:
        return describe_setting(whole_setting(*self.found[0][1:]))

    def own(self) -> list[tuple[File, Contender]]:
        """fastft's results."""
        return [(file, c) for file, _, case in self.found if (c := case.contender())]


class Change(NamedTuple):
    """One table row: fastft's results by file, and the last compared with the first.

    verdict: None if one of the two has no result.
    """

    shared: Shared
    cells: Sequence[Spread | None]
    verdict: Verdict | None


@dataclass(frozen=True)
class Comparison:
    """The compared files, what they have in common, and a row per figure of fastft."""

    files: Sequence[File]
    shared: Sequence[Shared]
    changes: Sequence[Change]

    def count(self, outcome: str) -> int:
        return sum(c.verdict is not None and c.verdict.outcome == outcome for c in self.changes)

    @property
    def below(self) -> list[Change]:
        """The figures that are significantly below the given ratio."""
        return [c for c in self.changes if c.verdict and c.verdict.below]

    @property
    def missing(self) -> list[Shared]:
        """fastft's figures in the first file that the last one does not have."""
        first, last = (cases_of(file) for file in (self.files[0], self.files[-1]))
        known = {identity for identity, (_, _, case) in last if case.contender()}
        return [Shared([one]) for identity, one in first if one[2].contender() and identity not in known]

    @cached_property
    def drift(self) -> str:
        """How much slower or faster the libraries that fastft is compared with are in the last file; "" if they are not.

        If libraries of one version have other speeds, the machine has, and perhaps fastft's figures only follow it.
        """
        logs = list[float]()
        for shared in self.shared:
            ends = [case for file, _, case in shared.found if file.number in (1, len(self.files))]
            if len(ends) < 2 or shared.measure.unit not in (WALL_RATE, CPU_RATE):
                continue
            for peer in ends[0].measured:
                again = ends[1].contender(peer.name)
                if OURS not in peer.name and peer.version and again and again.version == peer.version:
                    logs += Paired.of(peer, again, shared.measure.better).logs
        times = math.exp(fmean(logs)) if logs else 1.0
        if abs(times - 1) < DRIFT:
            return ""
        how = "slower" if times < 1 else "faster"
        return (
            f"the same versions of other libraries are {times:.2f} times as fast in the last file (mean of {len(logs)} rounds), "
            f"so the machine itself was probably {how}"
        )

    @property
    def remarks(self) -> list[str]:
        """What besides fastft differs between the first and the last file, and what the last one lacks, in sentences."""
        results = self.files[0].result, self.files[-1].result
        changed = {fact.name: fact.values for fact in facts([machine_facts(r) for r in results]) if fact.differs}
        said = [f"another {SAME_FACTS[name]}: {a} and {b}" for name, (a, b) in changed.items() if name in SAME_FACTS]
        if len({r.images.sha256 for r in results} - {None}) > 1 and "images" not in changed:
            said.append("other images: their checksums differ")
        first, last = (r.machine.libraries for r in results)
        other = [f"{name} {v} and {last[name]}" for name, v in first.items() if last.get(name, v) != v]
        said += [f"other versions: {', '.join(other)}"] if other else []
        said += [self.drift] if self.drift else []
        said += [f"{result.date}: files were changed since the commit" for result in results if result.changed]
        return said + [f"missing in the last file: {joined(s.measure.title, s.setting)}" for s in self.missing]


def compare(results: Sequence[Result], threshold: float | None = None) -> Comparison:
    """Compare the last result with the first.

    threshold: also decide which figures are significantly below this ratio.

    Raises UserError if there are too many results or if they share no measure.
    """
    if len(results) > MOST_FILES:
        raise UserError(f"{len(results)} results are too many to compare. Give {MOST_FILES} at most")
    files = label_files(results)
    found: dict[object, list[tuple[File, Measure, Case]]] = {}  # in the order of the first file that has each case
    for identity, one in (pair for file in files for pair in cases_of(file)):
        if one[2].measured:
            found.setdefault(identity, []).append(one)
    shared = [Shared(cases) for cases in found.values() if len({file.number for file, _, _ in cases}) > 1]
    if not shared:
        raise UserError("the results have no measure in common. Compare results from the same benchmark and settings")
    return Comparison(files, shared, changes_of([s for s in shared if s.own()], files, threshold))


def render_comparison(comparison: Comparison) -> str:
    """Return the page as HTML."""
    files, shared = comparison.files, comparison.shared
    return render_page(
        "bench_compare.html",
        title="Benchmarks compared",
        files=files,
        quick=[file.letter for file in files if file.result.quick],
        sentences=list(sentences(comparison)),
        changes=comparison.changes,
        charts=list(filter(None, map(render_chart, line_charts(files)))),
        figures=[bars_of(s) for s in shared if line_axis(s.measure) is None],
        marks=[file.mark for file in files],
        facts=facts([machine_facts(file.result) for file in files]),
        commands=[(file, list(dict.fromkeys(s.command for s in file.result.sessions))) for file in files],
    )


def write_bench_page(results: Sequence[Result], path: Path, threshold: float | None = None) -> Comparison | None:
    """Write the page completely or not at all, and return the comparison if there are several results.

    Raises UserError if several results have no measure in common.
    """
    comparison = compare(results, threshold) if len(results) > 1 else None
    write_text(path, render_comparison(comparison) if comparison else render_bench(results[0]))
    return comparison


def comparison_as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as `fastft report --json` prints it. docs/bench-schema.md describes the keys."""
    figures = [
        {
            "key": change.shared.measure.key, "title": change.shared.measure.title, "unit": change.shared.measure.unit,
            "better": change.shared.measure.better,
            "setting": change.shared.measure.setting | change.shared.found[0][2].setting,
            "medians": [None if cell is None else cell.median for cell in change.cells],
            "verdict": verdict.outcome if (verdict := change.verdict) else None,
            **({name: getattr(verdict, name) for name in NUMBERS} if verdict else dict.fromkeys(NUMBERS)),
        }
        for change in comparison.changes
    ]  # fmt: skip
    counts = {outcome.replace(" ", "_"): comparison.count(outcome) for outcome in ("better", "worse", "cannot tell")}
    missing = [f"{s.measure.key}, {s.setting}".rstrip(", ") for s in comparison.missing]
    told = {"below": len(comparison.below), "missing": missing, "remarks": comparison.remarks}
    return counts | told | {"figures": figures}


# what the files have in common -----------------------------------------------------------------------------------------


def label_files(results: Sequence[Result]) -> list[File]:
    """Label the files by letter, and by processor, cores, GPU, version and date where these are not the same in all."""
    described = [
        (r.machine.cpu, f"{r.machine.cores} cores", describe_gpus(r), describe_version(r), r.date[:10]) for r in results
    ]
    differing = [k for k, column in enumerate(zip(*described, strict=True)) if len(set(column)) > 1] or [0, 3, 4]
    return [
        File(ascii_uppercase[k], k + 1, ", ".join(row[column] for column in differing), result)
        for k, (row, result) in enumerate(zip(described, results, strict=True))
    ]


def cases_of(file: File) -> list[tuple[object, tuple[File, Measure, Case]]]:
    """Return a file's cases, each with what identifies it in other files."""
    return [
        ((m.key, m.unit, tuple(sorted((k, str(v)) for k, v in whole_setting(m, case).items()))), (file, m, case))
        for m in file.result.measures
        for case in m.cases
    ]


# sentences ------------------------------------------------------------------------------------------------------------


def sentences(comparison: Comparison) -> Iterator[Markup]:
    """State images per second on one core, the ratio to timm, how many results are better or worse, and the drift."""
    whole = next((s for s in comparison.shared if headline_of(s.measure) and len(s.own()) > 1), None)
    if whole is not None:
        words = str(whole_setting(*whole.found[0][1:]).get("files", "images"))
        rates = [Markup("{} on {}").format(amount(spread(own)), file.letter) for file, own in whole.own()]
        yield Markup("With fastft, one core turns {} {} per second into augmented tensors.").format(
            listed(rates), words
        )
        ratios = [
            Markup("{} on {}").format(multiple(found), file.letter)
            for file, measure, case in whole.found
            if (peer := case.contender(USUAL)) and (found := ratio(measure, case, peer))
        ]
        if ratios:
            yield Markup("That is {} the throughput of {}.").format(listed(ratios), USUAL)
    yield counted(comparison)
    if comparison.drift:
        yield Markup("But {}.").format(comparison.drift)


def counted(comparison: Comparison) -> Markup:
    """Say how many figures are better, worse, and too uncertain to tell."""
    files = comparison.files
    better, worse, unknown = (comparison.count(outcome) for outcome in ("better", "worse", "cannot tell"))
    said = Markup("Of {} figures of fastft, <b>{}</b> are better and <b>{}</b> are worse on {} than on {}").format(
        len(comparison.changes), better, worse, files[-1].letter, files[0].letter
    )
    return said + (f", and these rounds cannot tell for {unknown}." if unknown else ".")


# bars, lines and the table --------------------------------------------------------------------------------------------


def bars_of(shared: Shared) -> BarFigure:
    """Return the bars for every contender, one per file, with the ratio to the first file that has it.

    The files' rounds did not alternate, so a ratio's range is the one between the extremes.
    """
    bars = []
    for name in dict.fromkeys(c.name for _, _, case in shared.found for c in case.measured):
        found = [(file, c, spread(c)) for file, _, case in shared.found if (c := case.contender(name))]
        first = found[0][2]
        for file, contender, value in found:
            bar = Bar(
                name, value, len(contender.rounds), is_limit=contender.limit, file=file.number, letter=file.letter
            )
            if contender is not found[0][1] and first.low > 0 and value.low > 0:
                to_first = Spread(value.median / first.median, value.low / first.high, value.high / first.low)
                low, middle, high = times(to_first)
                bar = bar._replace(ratio=f"{middle}×", ratio_range=range_text(low, high))
            bars.append(bar)
    end = axis_end(max(bar.spread.high for bar in bars))
    compared, m = f"to {shared.found[0][0].letter}", shared.measure
    return BarFigure(m.title, m.unit, m.better, bars, end, compared=compared, setting=shared.setting)


def changes_of(shared: Sequence[Shared], files: Sequence[File], threshold: float | None) -> list[Change]:
    """Return a row per case. All verdicts are made together, because they are adjusted for the number of figures."""
    owns = [{file.number: own for file, own in s.own()} for s in shared]
    ends = [(own.get(files[0].number), own.get(files[-1].number)) for own in owns]
    paired = [
        Paired.of(first, last, s.measure.better) if first and last else None
        for s, (first, last) in zip(shared, ends, strict=True)
    ]
    decided = iter(verdicts([pair for pair in paired if pair], threshold))
    return [
        Change(s, [spread(own[f.number]) if f.number in own else None for f in files], next(decided) if pair else None)
        for s, own, pair in zip(shared, owns, paired, strict=True)
    ]


def line_charts(files: Sequence[File]) -> Iterator[Chart]:
    """Draw fastft's line for every file, for each measure over threads or sizes that at least two files have."""
    for measure in files[0].result.measures:
        axis = line_axis(measure)
        found = [(f, m) for f in files if (m := f.result.measure(measure.key)) is not None and line_axis(m) == axis]
        if axis is not None and len(found) > 1:
            lines = [line_over(axis, m.cases, OURS, f"{OURS} on {f.letter}", colour(f.number - 1)) for f, m in found]
            yield chart_over(axis, measure, lines)
