"""`fastft bench NAME`: plan the measures, run them one after another, and write the page.

After each measure, JSON is written and its table is printed.
"""

import argparse
import secrets
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from beton_tools import __version__
from beton_tools.base.cgroup import usable_cpus
from beton_tools.base.console import compact_table, format_duration, print_table, printable
from beton_tools.base.errors import UserError
from fastft.bench import BENCHES, harness
from fastft.bench.circumstances import Watch, commit, describe_machine
from fastft.bench.dataset import MAX_SIDE, ORIGINAL, QUALITY, RESIZED, Workspace, find_images
from fastft.bench.harness import Options
from fastft.bench.measure import Plan, all_plans, parse_peers, run_plan
from fastft.bench.page.comparison import write_bench_page
from fastft.bench.page.one import describe_missing
from fastft.jobs.decided import load_decided
from fastft.machine import bench_result
from fastft.machine.bench_result import (
    FORMAT,
    SHARE,
    Measure,
    Result,
    Spread,
    impossible_shares,
    is_disturbed,
    ratio,
    read_result,
    spread,
    without_shares,
    write_result,
)
from fastft.machine.usable_gpu import refuse_unusable_gpu
from fastft.report.page import figure

IMAGES, ROUNDS = 700, 5
QUICK_IMAGES, QUICK_ROUNDS = 12, 2
ANEW = "Measure everything again, or leave --add out"
QUICK_SECONDS = 20  # for a measure with --quick: imports and compilation


def run_bench(name: str, args: argparse.Namespace, console: Console) -> Result:
    """Run a benchmark from BENCHES, one of its measures, or all of them.

    The result is also written to `args.out` as NAME.json.
    """
    refuse_unusable_gpu("measure on the CPU with CUDA_VISIBLE_DEVICES=-1")
    plans = planned(name)
    recipe = load_decided(args.recipe, ()) if args.recipe else None
    if recipe and not any(plan.key.startswith("e2e") for plan in plans):
        raise UserError(f"--recipe is for fastft bench e2e or all, because {name} trains nothing")
    peers, path = parse_peers(args.peers), args.out / f"{name}.json"
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fastft-bench-") as scratch:
        count = args.count or (QUICK_IMAGES if args.quick else IMAGES)
        images = find_images(args.images, Path(scratch), count)
        rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
        options = Options(
            Workspace(Path(scratch), images), rounds=rounds, threads=usable_cpus(), quick=args.quick, peers=peers,
            recipe=recipe, own=args.contender,
        )  # fmt: skip
        seed = secrets.randbelow(1 << 31) if args.seed is None else args.seed
        harness.drawing.seed(seed)
        watch = Watch(_command(name, args, images.folder, seed), seed)
        result = new_result(images.described(), args.quick, watch)
        if args.add:
            path = args.add
            result = extended(read_result(path), result) if path.exists() else result
        page = path.with_suffix(".html")
        new = [plan.key for plan in plans if result.measure(plan.key) is None]
        result.missing = list(dict.fromkeys([*result.missing, *new]))
        progress = Progress(console, plans, options, result, watch, path)
        try:
            for plan in plans:
                for _, group in groupby(progress.run(plan), key=lambda m: (m.title, m.unit)):
                    print_measures(list(group), console)
        except BaseException:  # Ctrl-C, or fastft's own contender failed
            if result.measures:
                write_bench_page([result], page)
                console.print(printable(f"{page} has what was measured. {describe_missing(result, path)}"))
            raise
    write_bench_page([result], page)
    for written in (path, page):
        console.print(printable(str(written)), highlight=False, soft_wrap=True)
    return result


def planned(name: str, here: bool = True) -> list[Plan]:
    """Return the measures in a benchmark, in all of them, or the one with this key.

    Args:
        here: only those that this machine can run.

    Raises UserError if the name is unknown or if all measures need a GPU.
    """
    found = all_plans()
    if name != "all":
        found = [plan for plan in found if name == plan.key or name == plan.key.partition(".")[0]]
    if not found:
        raise UserError(
            f"there is no benchmark {name!r}. Choose from {', '.join(BENCHES)}, all, or give a measure such as loader.cold"
        )
    possible = [plan for plan in found if torch.cuda.is_available() or not plan.needs_gpu or not here]
    if not possible:
        raise UserError(f"{name} needs a GPU, and this machine has none")
    return possible


def new_result(images: bench_result.Images, quick: bool, watch: Watch) -> Result:
    name, changed = commit()
    notes = [
        f"{RESIZED}: longest side {MAX_SIDE}, JPEG quality {QUALITY}, 4:2:0. {ORIGINAL}: unchanged.",
        "The images are in the page cache unless a measure says otherwise.",
        "Each contender has its own process on the same cores. Rounds alternate between contenders in an order that is "
        "drawn anew for each, and the first is not counted.",
        "Images per CPU second count the CPU time of all threads and workers.",
    ]
    if quick:
        notes.append("This was a quick run. Its results mean nothing.")
    return Result(
        format=FORMAT, fastft=__version__, commit=name, changed=changed, quick=quick, machine=describe_machine(),
        images=images, sessions=[watch.session()], measures=[], notes=notes,
    )  # fmt: skip


def extended(old: Result, new: Result) -> Result:
    """Return the old result with a session for new measures.

    Raises UserError if the version, the machine or the images differ.
    """
    tree = {True: "with changed files", False: "without changes", None: "without git"}
    quick = "a full run", "a quick run"

    def images(result: Result) -> str:
        known = f", SHA-256 {result.images.sha256[:12]}" if result.images.sha256 else ""
        return f"{result.images.what} ({result.images.mean_kb:g} kB each{known})"

    differences = (
        ("another version", f"fastft {old.fastft}", f"fastft {new.fastft}"),
        ("another commit", f"commit {old.commit}", f"commit {new.commit}"),
        ("another state of the working tree", f"a commit {tree[old.changed]}", f"a commit {tree[new.changed]}"),
        ("another kind of run", quick[old.quick], quick[new.quick]),
        ("other images", images(old), images(new)),
    )
    for what, before, now in differences:
        if before != now:
            raise UserError(f"--add: {what}: the file has {before}, and this is {now}. {ANEW}")
    if old.machine != new.machine:
        known = bench_result.Machine.__struct_fields__
        names = ", ".join(name for name in known if getattr(old.machine, name) != getattr(new.machine, name))
        raise UserError(f"--add: the result is from another machine or environment, which differ in: {names}. {ANEW}")
    old.sessions += new.sessions
    return old


def _command(name: str, args: argparse.Namespace, folder: Path | None, seed: int) -> str:
    """Return the command that repeats the benchmark in this folder. It names the images and the seed, even by default."""
    given = {
        "--images": folder, "--count": args.count, "--rounds": args.rounds, "--contender": args.contender,
        "--peers": None if args.peers == "all" else args.peers, "--recipe": args.recipe, "--add": args.add, "--seed": seed,
    }  # fmt: skip
    words = [w for flag, value in given.items() if value is not None for w in (flag, str(value))]
    return shlex.join(["fastft", "bench", name, *words, *(["--quick"] if args.quick else [])])


@dataclass
class Progress:
    """The progress of a suite: what is being measured, and about how long the rest will take."""

    console: Console
    plans: Sequence[Plan]
    options: Options
    result: Result
    watch: Watch
    path: Path
    done: int = 0

    def __post_init__(self) -> None:
        names = ", ".join(plan.key for plan in self.plans)
        self.console.print(f"{names}\nThis takes about {self.left()}.", highlight=False)

    def left(self) -> str:
        if self.options.quick:
            return format_duration(QUICK_SECONDS * (len(self.plans) - self.done))
        share = (1 + self.options.rounds) / (1 + ROUNDS) * self.options.images / IMAGES
        return format_duration(share * sum(plan.seconds for plan in self.plans[self.done :]))

    def run(self, plan: Plan) -> list[Measure]:
        """Run a plan, and write its measures into the result and its file.

        If the plan does not come to its end, those of its measures that the result does not have yet are written.
        """
        head = f"{plan.key} ({self.done + 1} of {len(self.plans)}, about {self.left()} left)"
        found, is_complete, result = list[Measure](), False, self.result
        try:
            with self.console.status(head) as status:

                def show(text: str, of_round: str = "") -> None:
                    """Show it beside a spinner in a terminal, otherwise as one line per group of contenders."""
                    line = f"{head}: {of_round}{text}"
                    if self.console.is_terminal:
                        status.update(line)
                    elif not of_round:
                        self.console.print(line, highlight=False, markup=False)

                harness.show_progress = show
                for item in run_plan(plan, self.options):
                    if isinstance(item, str):
                        result.notes.append(item)
                    elif measure := accepted(item, result.notes):
                        found.append(measure)
            is_complete = True
            self.done += 1
            result.missing = [key for key in result.missing if key != plan.key]
        finally:
            new = {m.key: m for m in found if is_complete or result.measure(m.key) is None}
            result.measures = [m for m in result.measures if m.key not in new] + list(new.values())
            result.sessions[-1] = self.watch.session(self.options.workspace.sha256)
            if is_complete or result.measures:
                write_result(self.path, result)
        return found


def accepted(measure: Measure, notes: list[str]) -> Measure | None:
    """Return the measure without its shares if one of them is above 100 %, which a note then says.

    Returns None if the measure is nothing but such shares.
    """
    impossible = list(impossible_shares(measure))
    if not impossible:
        return measure
    notes.append(f"Refused, because a share cannot be above 100 %: {', '.join(impossible)}.")
    return None if measure.unit == SHARE else without_shares(measure)


# tables ---------------------------------------------------------------------------------------------------------------


def print_measures(measures: Sequence[Measure], console: Console) -> None:
    """Print measures with one title and unit in 80 columns: medians, lowest and highest round, ratios by round."""
    first = measures[0]
    console.print(Text(f"{first.title}, {first.unit}", "bold"))
    console.print(", ".join(f"{key} {value}" for key, value in first.setting.items()), highlight=False, markup=False)
    pairs = [(m, case) for m in measures for case in m.cases]
    compared = ["fastft is"] if any(ratio(m, case, c) for m, case in pairs for c in case.measured) else []
    table = compact_table(None, ["contender", "median", "lowest-highest", *compared])
    for measure, case in pairs:
        if case.setting:
            table.add_row(Text(", ".join(f"{key} {value}" for key, value in case.setting.items()), "italic"))
        for contender in case.measured:
            values, times = spread(contender), ratio(measure, case, contender)
            shown = figure(values.median), f"{figure(values.low)}-{figure(values.high)}"
            table.add_row(Text(contender.name), *shown, *([describe_times(times)] if times else []))
        for contender in case.skipped:
            table.add_row(Text(f"{contender.name}: {contender.skipped}"))
        table.add_section()
    print_table(table, console)
    for measure in measures:
        if is_disturbed(measure, usable_cpus()):
            say = f"Other programs kept {measure.foreign:.1f} cores busy meanwhile ({measure.key})."
            console.print(say, highlight=False, markup=False)


def describe_times(times: Spread) -> str:
    return f"{times.median:.2f}x ({times.low:.2f}-{times.high:.2f})"
