"""`fastft bench NAME`: measure, write JSON and HTML, print a table."""

import argparse
import json
import logging
import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from beton_tools.base.atomic import write_text
from beton_tools.base.errors import UserError
from fastft.bench import BENCHES
from fastft.bench.dataset import Images, Workspace, find_images
from fastft.bench.environment import describe_machine, load, now
from fastft.bench.harness import log
from fastft.bench.options import BenchResult, Options, parse_peers
from fastft.recipe import load_recipe
from fastft.report.bench_report import measure_view, render_bench
from fastft.report.page import figure
from fastft.report.run_report import write_page

IMAGES, ROUNDS = 700, 7
QUICK_IMAGES, QUICK_ROUNDS = 12, 2
NAME_WIDTH = 28  # of the contender column; leaves room for the figures in 80 columns


def run_bench(name: str, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure one of BENCHES, or all; returns the document, also written to `args.out` as NAME.json and NAME.html.

    Raises:
        UserError: no images, an unknown peer, or nothing left to measure.
    """
    peers = parse_peers(args.peers)
    if args.data and args.images:
        raise UserError("--data and --images both say what to measure on; give one of them")
    if args.recipe and name not in ("e2e", "all"):
        raise UserError(f"--recipe is for fastft bench e2e or all; {name} trains nothing")
    recipe = load_recipe(args.recipe) if args.recipe else None
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fastft-bench-") as scratch:
        count = args.count or (QUICK_IMAGES if args.quick else IMAGES)
        images = find_images(args.images, args.data, Path(scratch), count)
        document: dict[str, Any] = {
            "machine": describe_machine(), "date": now(), "command": _command(name, args, images),
            "quick": args.quick, "notes": _notes(images.what, args.quick), "measures": [],
        }  # fmt: skip
        options = Options(
            Workspace(Path(scratch), images, args.data),
            rounds=args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS),
            threads=len(os.sched_getaffinity(0)),
            quick=args.quick,
            peers=peers,
            recipe=recipe,
        )
        for bench in BENCHES if name == "all" else (name,):
            _measure(bench, options, document, console)
            document["machine"]["load_average"] = f"{load()} at the end, the benchmark's own included"
            write_document(document, args.out / f"{name}.json")
            write_page(render_bench(document, f"{name}.json"), args.out / f"{name}.html")
    console.print(f"{args.out / name}.json and .html", highlight=False)
    return document


def _measure(bench: str, options: Options, document: dict[str, Any], console: Console) -> None:
    with console.status(f"measuring {bench}") as status, _progress(bench, status, console):
        found: BenchResult = import_module(f"fastft.bench.{bench}_bench").run(options)
    document["notes"] += found.notes
    measures = [_rounded({"bench": bench, **measure}) for measure in found.measures]
    document["measures"] += measures
    for _, group in groupby(measures, key=lambda m: (m["name"], m["unit"])):
        print_group(list(group), console)


@contextmanager
def _progress(bench: str, status: Status, console: Console) -> Iterator[None]:
    """Show the harness's progress: beside a spinner in a terminal, else one line per group of contenders."""

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = f"measuring {bench}: {record.getMessage()}"
            if console.is_terminal:
                status.update(text)
            else:
                console.print(text, highlight=False, markup=False)

    handler = Shown(logging.DEBUG if console.is_terminal else logging.INFO)
    log.addHandler(handler)
    log.setLevel(handler.level)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _command(name: str, args: argparse.Namespace, images: Images) -> str:
    """The command that repeats the benchmark in this folder, with the images named even if they were the default."""
    given = [
        ("--data", args.data),
        ("--images", images.folder),
        ("--count", args.count),
        ("--rounds", args.rounds),
    ]
    words = [w for flag, value in given if value is not None for w in (flag, str(value))]
    words += ["--peers", args.peers] if args.peers != "all" else []
    words += ["--recipe", str(args.recipe)] if args.recipe else []
    return shlex.join(["fastft", "bench", name, *words, *(["--quick"] if args.quick else [])])


def _notes(what: str, quick: bool) -> list[str]:
    notes = [
        f"Images: {what}, in the page cache unless said otherwise.",
        "Each contender has a process of its own on the same cores; rounds alternate between them, the first is not "
        "counted. Images per second per core are per second of CPU time of a contender's threads and workers.",
    ]
    return [*notes, "A quick run: its figures mean nothing."] if quick else notes


def print_group(measures: list[dict[str, Any]], console: Console) -> None:
    """Print measures of one name and unit in 80 columns: medians, lowest and highest round, ratios round by round."""
    keys = list(dict.fromkeys(key for m in measures for key in m["setting"]))
    varied = [key for key in keys if len({str(m["setting"].get(key)) for m in measures}) > 1]
    fixed = ", ".join(f"{key} {measures[0]['setting'][key]}" for key in keys if key not in varied)
    views = [measure_view(m) for m in measures]
    mark = " (modelled)" if views[0]["modelled"] else ""
    console.print(Text(f"{measures[0]['name']}{mark}, {measures[0]['unit']}", "bold"))
    console.print(fixed, highlight=False, markup=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("contender", min_width=NAME_WIDTH)
    compared = ["fastft is"] if any(view["compared"] for view in views) else []
    for key in ["median", "lowest-highest", *compared]:
        table.add_column(key, justify="right", no_wrap=True)
    for view in views:
        setting = ", ".join(f"{key} {view['setting'].get(key, '')}" for key in varied)
        if setting:
            table.add_row(Text(setting, "italic"))
        for c in view["contenders"]:
            table.add_row(Text(c["name"]), *_figures(c))
        for c in view["skipped"]:
            table.add_row(Text(f"{c['name']}: {c['skipped']}"))
        table.add_section()
    console.print(table)


def _figures(contender: dict[str, Any]) -> list[str]:
    ratio = contender["ratio"]
    times = [f"{ratio['median']:.2f}x ({ratio['min']:.2f}-{ratio['max']:.2f})"] if ratio else []
    if ratio and contender["limit"]:
        times = [f"at {ratio['median']:.0%} of it"]
    return [figure(contender["median"]), f"{figure(contender['min'])}-{figure(contender['max'])}", *times]


def write_document(document: dict[str, Any], path: Path) -> None:
    write_text(path, json.dumps(document, indent=1) + "\n")


def _rounded(value: Any) -> Any:
    """Round numbers to five significant digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value
