"""`fastft bench NAME`: measure, write JSON, print a table."""

import argparse
import json
import os
import platform
import shlex
import tempfile
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import partial
from importlib import import_module
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.status import Status
from rich.text import Text

from beton_tools.base.atomic import write_text
from beton_tools.base.console import compact_table, print_table
from beton_tools.base.errors import UserError
from fastft.bench import BENCHES, harness
from fastft.bench.dataset import Images, Workspace, find_images
from fastft.bench.harness import Options, parse_peers
from fastft.machine.facts import GIB, cpu_name, package_version
from fastft.recipe import load_recipe
from fastft.report.page import figure

IMAGES, ROUNDS = 700, 7
QUICK_IMAGES, QUICK_ROUNDS = 12, 2
LIBRARIES = (
    "ffcv", "timm", "torchvision", "open_clip_torch", "numba", "pillow", "opencv-python", "nvidia-dali-cuda120"
)  # fmt: skip


def run_bench(name: str, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure one of BENCHES, or all; returns the document, also written to `args.out` as NAME.json."""
    peers = parse_peers(args.peers)
    if args.recipe and name not in ("e2e", "all"):
        raise UserError(f"--recipe is for fastft bench e2e or all; {name} trains nothing")
    if name == "augment" and not torch.cuda.is_available():
        raise UserError(
            "augment is measured on a GPU, and there is none; loader compares decoding and augmentation per core"
        )
    recipe = load_recipe(args.recipe) if args.recipe else None
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fastft-bench-") as scratch:
        count = args.count or (QUICK_IMAGES if args.quick else IMAGES)
        images = find_images(args.images, Path(scratch), count)
        document: dict[str, Any] = {
            "machine": describe_machine(), "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": _command(name, args, images), "quick": args.quick, "notes": _notes(images.what, args.quick),
            "measures": [],
        }  # fmt: skip
        options = Options(
            Workspace(Path(scratch), images),
            rounds=args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS),
            threads=len(os.sched_getaffinity(0)),
            quick=args.quick,
            peers=peers,
            recipe=recipe,
        )
        for bench in BENCHES if name == "all" else (name,):
            with console.status(f"measuring {bench}") as status:
                harness.show_progress = partial(_show_progress, console, status, bench)
                measures = _kept(bench, options, document, args.out / f"{name}.json")
                for _, group in groupby(measures, key=lambda m: (m["name"], m["unit"])):
                    print_group(list(group), console)
    console.print(f"{args.out / name}.json", highlight=False)
    return document


def _show_progress(console: Console, status: Status, bench: str, text: str, of_round: str = "") -> None:
    """Beside a spinner in a terminal, else one line per group of contenders."""
    line = f"measuring {bench}: {of_round}{text}"
    if console.is_terminal:
        status.update(line)
    elif not of_round:
        console.print(line, highlight=False, markup=False)


def _kept(bench: str, options: Options, document: dict[str, Any], path: Path) -> Iterator[dict[str, Any]]:
    """The measures of a benchmark as they come, each in the document and its file at once."""
    for result in import_module(f"fastft.bench.{bench}_bench").run(options):
        if isinstance(result, str):
            document["notes"].append(result)
        else:
            document["measures"].append(_rounded({"bench": bench, **result}))
        load = f"{os.getloadavg()[0]:.1f} at the end, the benchmark's own included"
        document["machine"]["load_average"] = load
        write_text(path, json.dumps(document, indent=1) + "\n")
        if not isinstance(result, str):
            yield document["measures"][-1]


def _command(name: str, args: argparse.Namespace, images: Images) -> str:
    """The command that repeats the benchmark in this folder, with the images named even if they were the default."""
    given = {
        "--images": images.folder, "--count": args.count, "--rounds": args.rounds,
        "--peers": None if args.peers == "all" else args.peers, "--recipe": args.recipe,
    }  # fmt: skip
    words = [w for flag, value in given.items() if value is not None for w in (flag, str(value))]
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
    console.print(Text(f"{measures[0]['name']}, {measures[0]['unit']}", "bold"))
    console.print(fixed, highlight=False, markup=False)
    compared = ["fastft is"] if any(view["compared"] for view in views) else []
    table = compact_table(None, ["contender", "median", "lowest-highest", *compared])
    for view in views:
        setting = ", ".join(f"{key} {view['setting'].get(key, '')}" for key in varied)
        if setting:
            table.add_row(Text(setting, "italic"))
        for c in view["contenders"]:
            table.add_row(Text(c["name"]), *_figures(c))
        for c in view["skipped"]:
            table.add_row(Text(f"{c['name']}: {c['skipped']}"))
        table.add_section()
    print_table(table, console)


def _figures(contender: dict[str, Any]) -> list[str]:
    ratio = contender["ratio"]
    times = [f"{ratio['median']:.2f}x ({ratio['min']:.2f}-{ratio['max']:.2f})"] if ratio else []
    return [figure(contender["median"]), f"{figure(contender['min'])}-{figure(contender['max'])}", *times]


def measure_view(measure: dict[str, Any]) -> dict[str, Any]:
    """The measure, with how many times better fastft is than each contender; those that did not run apart."""
    contenders = [{"note": "", "limit": False, **c} for c in measure["contenders"]]
    shown = [c for c in contenders if "median" in c]
    own = next((c for c in shown if c["name"] == "fastft"), None)
    for c in shown:
        c["ratio"] = None if own in (None, c) else _ratio(own, c, measure.get("better") == "lower")
    return {
        **measure,
        "contenders": shown,
        "skipped": [c for c in contenders if "median" not in c],
        "compared": any(c["ratio"] for c in shown),
    }


def _ratio(own: dict[str, Any], peer: dict[str, Any], lower_is_better: bool) -> dict[str, float] | None:
    """How many times better `own` is: round by round if the rounds alternated, because load slows both sides."""
    top, bottom = (peer, own) if lower_is_better else (own, peer)
    if len(top["rounds"]) != len(bottom["rounds"]):
        top, bottom = ({"rounds": [c["median"]]} for c in (top, bottom))
    if not all(bottom["rounds"]):
        return None
    by_round = [a / b for a, b in zip(top["rounds"], bottom["rounds"], strict=True)]
    return {"median": median(by_round), "min": min(by_round), "max": max(by_round)}


def _rounded(value: Any) -> Any:
    """Round numbers to five significant digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


def describe_machine() -> dict[str, Any]:
    """Processor, memory, GPU, and library versions of all contenders."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "versions": ", ".join(f"{name} {version}" for name in LIBRARIES if (version := package_version(name))),
    }
