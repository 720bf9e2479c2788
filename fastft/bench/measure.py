"""A measure is data: what is run in which variants, and the figures that follow from the rounds.

From these declarations follow `fastft bench`, the result file, its page and the comparison of several, and the tables
and the picture that benchmarks/speed.py makes for the docs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from typing import Any, Literal

from beton_tools.base.errors import UserError
from fastft.bench import BENCHES, PEERS
from fastft.bench.harness import Contender, Options, Rounds, Trial, alternate, alternate_fresh
from fastft.bench.task import Entry, Task, entries, peer_module
from fastft.bench.ways import warm
from fastft.machine import bench_result
from fastft.machine.facts import package_version

LOADER = "fastft.bench.ours"  # fastft's own loader
WALL, CPU = "wall", "cpu"  # a round's value: images per second of wall time, or of CPU time in all threads and workers
WALL_RATE, CPU_RATE = "images/s", "images per CPU second"  # their units
# the page's chapters, in their order; measures over threads or image sizes are drawn as lines in a chapter of their own
LOADING, LINES, SPLIT, START, CORES, ON_GPU, TRAINING = CHAPTERS = (
    "Images per second", "Threads and image sizes", "Where the time for one image goes", "Start and memory",
    "CPU cores that your GPUs need", "On the GPU", "Training",
)  # fmt: skip
Setting = Mapping[str, str | int | float]
Findings = Iterator[bench_result.Measure | str]  # measures and notes, in the order they come


@dataclass(frozen=True)
class Row:
    """A line in the docs' summary: what is measured, against which contender, and in which case.

    last: take the measure's last case, such as the one with all threads, and not the first with this setting.
    """

    what: str
    peer: str
    setting: Setting = field(default_factory=dict)
    last: bool = False


@dataclass(frozen=True)
class Figure:
    """A measure in the result file. key, title, unit, about and better are stored there.

    value: WALL, CPU, or the name of one of the round's own figures. Cases without it are left out.
    keep: more of the round's own figures to store.
    only: takes only variants with these settings, which are then not stored. last: takes only the last variant that has
    a core for each thread, once all variants ran.
    arms: the arms that it takes, with the setting of each.
    names: the contenders that it takes, with their names here; by default all.
    chapter: its place on the page. headline: it tells what one core prepares; the first that a result has is used.
    rows: its lines in the docs' summary. processors: its columns in the docs' table of processors, with the peer's rounds
    in benchmarks/results/independent.json. drawn: title and contenders in the README's picture.
    """

    key: str
    title: str
    unit: str
    value: str
    about: str = ""
    better: Literal["higher", "lower"] = "higher"
    keep: Sequence[str] = ()
    only: Setting = field(default_factory=dict)
    last: bool = False
    arms: Mapping[str, Setting] = field(default_factory=lambda: {"pass": {}})
    names: Mapping[str, str] | None = None
    chapter: str = LOADING
    headline: int = 0  # 1: first choice, 2: second choice
    rows: Sequence[Row] = ()
    processors: Sequence[tuple[str, str, str]] = ()  # what, peer, rounds
    drawn: tuple[str, tuple[str, ...]] | None = None

    def shown(self, rounds: Rounds, arm: str) -> dict[str, str]:
        """Return the contenders whose rounds have such a value, or that were skipped, with their names in the result."""
        names = self.names or {name: name for name in rounds.contenders}
        found = {name: rounds.trials.get(name, {}).get(arm, ()) for name in names}
        return {
            name: names[name] for name, trials in found.items()
            if (trials or name in rounds.skipped) and all(self.value in trial for trial in trials)
        }  # fmt: skip

    def case(self, rounds: Rounds, arm: str, setting: Setting) -> bench_result.Case:
        """Return one arm's rounds as they are stored."""
        shown, stored = self.shown(rounds, arm), []
        for name, as_ in shown.items():
            one, trials = rounds.contenders[name], rounds.trials.get(name, {}).get(arm, ())
            stored.append(bench_result.Contender(
                name=as_, rounds=[self._round(trial) for trial in trials], limit=one.limit, skipped=rounds.skipped.get(name),
                version=package_version(one.package) if one.package else None, differences=list(one.differences),
            ))  # fmt: skip
        measured = {name for name in shown if name in rounds.trials}
        order = [drawn for turn in rounds.order if (drawn := [shown[name] for name in turn if name in measured])]
        return bench_result.Case(setting=dict(setting), contenders=stored, order=order)

    def _round(self, trial: Trial) -> bench_result.Round:
        value = trial["count"] / trial[self.value] if self.value in (WALL, CPU) else trial[self.value]
        return bench_result.Round(
            value=shortened(value), images=int(trial.get("count", 0)), wall=shortened(trial["wall"]), cpu=shortened(trial["cpu"]),
            foreign=round(trial["foreign"], 3) if "foreign" in trial else None,
            figures={key: shortened(trial[key]) for key in self.keep if key in trial},
        )  # fmt: skip


def shortened(value: float) -> float:
    """Round to five significant digits."""
    return float(f"{value:.5g}")


@dataclass(frozen=True)
class Variant:
    """Contenders that run in turn on `threads` cores. setting: of the case. common: what all variants share.

    is_crowded: there are more threads than cores.
    """

    contenders: Sequence[Contender]
    setting: Setting = field(default_factory=dict)
    common: Setting = field(default_factory=dict)
    threads: int = 1
    is_crowded: bool = False


@dataclass(frozen=True)
class Plan:
    """What `fastft bench` knows by its key.

    seconds: how long it takes with the default number of images and rounds, on 2 cores of an AMD EPYC (Zen 4).
    fresh: each contender gets a new process in each round. refusal: why this machine cannot measure it, or "".
    notes: what the rounds by variant tell beyond the figures.
    """

    key: str
    seconds: float
    figures: Sequence[Figure]
    variants: Callable[[Options], Iterable[Variant]]
    needs_gpu: bool = False
    fresh: bool = False
    most_rounds: int | None = None
    refusal: Callable[[], str] = lambda: ""
    notes: Callable[[Sequence[Rounds]], Iterable[str]] = lambda rounds: ()


def run_plan(plan: Plan, options: Options) -> Findings:
    """Run the variants, and yield the plan's measures and notes.

    If a variant fails or is interrupted, the measures of those before it come first, and then its exception.
    """
    if why := plan.refusal():
        yield f"{plan.key} was left out. {why}"
        return
    rounds = min(options.rounds, plan.most_rounds or options.rounds)
    run = alternate_fresh if plan.fresh else alternate
    found: list[tuple[Variant, Rounds]] = []
    try:
        for one in plan.variants(options):
            found.append((one, run(one.contenders, rounds, one.threads)))
    except BaseException:
        yield from _measures(plan, found, rounds, is_complete=False)
        raise
    yield from _measures(plan, found, rounds)
    yield from plan.notes([rounds for _, rounds in found])


def _measures(
    plan: Plan, found: Sequence[tuple[Variant, Rounds]], rounds: int, is_complete: bool = True
) -> Iterator[bench_result.Measure]:
    roomy = [one for one in found if not one[0].is_crowded]
    for figure in plan.figures:
        cases = []
        for variant, ran in found if not figure.last else roomy[-1:] if is_complete else []:
            if figure.only.items() <= {**variant.common, **variant.setting}.items():
                setting = {k: v for k, v in variant.setting.items() if k not in figure.only}
                cases += [
                    figure.case(ran, arm, {**setting, **more})
                    for arm, more in figure.arms.items()
                    if any(name in ran.trials for name in figure.shown(ran, arm))
                ]
        if cases:
            yield bench_result.Measure(
                key=figure.key, bench=plan.key.partition(".")[0], title=figure.title, unit=figure.unit, about=figure.about,
                cases=cases, better=figure.better, setting={**found[-1][0].common, "rounds": rounds},
            )  # fmt: skip


# what there is --------------------------------------------------------------------------------------------------------


@cache
def all_plans() -> list[Plan]:
    return [plan for bench in BENCHES for plan in import_module(f"fastft.bench.{bench}_bench").PLANS]


@cache
def figures() -> dict[str, Figure]:
    """Return all declared figures by key."""
    return {figure.key: figure for plan in all_plans() for figure in plan.figures}


def parse_peers(text: str) -> tuple[str, ...]:
    """Parse peer names from "ffcv,timm", "all" or "none"."""
    if text in ("all", "none"):
        return PEERS if text == "all" else ()
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise UserError(f"there is no peer {unknown[0]!r}. Choose from {', '.join(PEERS)}, all or none")
    return names


# contenders -----------------------------------------------------------------------------------------------------------

Way = Callable[..., dict[str, Any]]


def enter(module: str, entry: Entry, task: Task, way: Way = warm, **more: Any) -> Contender:
    """Return the contender. more: options for the entry's `make`, in addition to its own."""
    given = {"module": module, "name": entry.name, "task": task.as_dict(), "options": {**entry.options, **more}}
    return Contender(entry.name, way, given, entry.work[task.work], entry.package or None, entry.limit)


def entered(
    options: Options, task: Task, way: Way = warm, ours: str = LOADER, only: Sequence[str] | None = None, **more: Any
) -> list[Contender]:
    """Return every entry that can do the task's work: fastft's in the module `ours`, then those of the wanted peers.

    only: the peers to take. The user's own loader is always included.
    """
    peers = [name for name in options.peers if only is None or name in only]
    modules = [ours, *map(peer_module, peers), *([options.own] if options.own else [])]
    return [
        enter(module, entry, task, way, **more)
        for module in modules
        for entry in entries(module)
        if task.work in entry.work and (entry.gpu == (task.device != "cpu") or module == ours)
    ]


def enter_as(contender: Contender, name: str, *differences: str) -> Contender:
    """Return the contender under another name, with more differences before its own."""
    return replace(contender, name=name, differences=(*differences, *contender.differences))
