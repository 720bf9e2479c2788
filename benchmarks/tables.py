"""Write the tables of README.md and docs/, and the pictures of docs/images, from benchmarks/results, so that no number is typed.

The demo's figures come from runs/demo/figures.json of `make demo`, kept as benchmarks/results/demo.json; costs are
modelled by `fastft cost`. A table is placed between `<!-- bench:NAME -->` and `<!-- /bench -->`; NAME is a key of TABLES. If
several result files contain a benchmark, the newest is used. Ratios are medians over paired rounds, with the lowest and highest.

Run: python benchmarks/tables.py [--check]     (--check writes nothing; exit code 1 if a table or picture is out of date)
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import costs
import msgspec
import photos
import probe
import study
from markupsafe import Markup

from beton_tools.base.console import markdown_table as markdown
from fastft.jobs.demo import CONTENDERS, DemoFigures, figure_cells
from fastft.report.charts import svg_file, svg_text
from fastft.report.page import figure

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{page}.md"
        for page in (
            "benchmarks",
            "cost",
            "large-data",
            "measurements/photos",
            "measurements/published",
            "measurements/study",
            "models",
            "study",
        )
    ),
)
TRAFFIC = ROOT / "fastft" / "cost" / "traffic.json"
RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
BLOCK = re.compile(r"(<!-- bench:([\w-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)

Measure = dict[str, Any]


class Results:
    """The newest document of each benchmark, and the demo's figures."""

    def __init__(self, folder: Path) -> None:
        self.demo = msgspec.json.decode((folder / "demo.json").read_bytes(), type=DemoFigures)
        self.processors: dict[str, Any] = json.loads((folder / "processors.json").read_text(encoding="utf-8"))
        self.documents: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.glob("*.json")):
            document = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(document, dict) and "measures" in document:
                for bench in {m["bench"] for m in document["measures"]}:
                    if document["date"] > self.documents.get(bench, {"date": ""})["date"]:
                        self.documents[bench] = document

    def measures(self, bench: str, *names: str) -> list[Measure]:
        of_bench = [m for m in self.documents[bench]["measures"] if m["bench"] == bench]
        return [measure_view(m) for name in names for m in of_bench if m["name"] == name]


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


# cells


def spread(contender: Measure) -> str:
    if len(contender["rounds"]) < 2:
        return figure(contender["median"])
    low, high = figure(contender["min"]), figure(contender["max"])
    return f"{figure(contender['median'])} ({low}-{high})"


def times(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f}x ({ratio['min']:.2f}-{ratio['max']:.2f})"


def contender(measure: Measure, name: str) -> Measure:
    return next(c for c in measure["contenders"] if c["name"] == name)


# tables


def comparison(bench: str, *names: str) -> Callable[[Results], str]:
    """A row per contender; settings that differ come first, those that do not stand below."""

    def table(results: Results) -> str:
        measures = results.measures(bench, *names)
        keys = list(dict.fromkeys(k for m in measures for k in m["setting"]))
        values = {k: [m["setting"].get(k) for m in measures] for k in keys}
        varied = [k for k in keys if len(set(map(str, values[k]))) > 1]
        several, compared = len(names) > 1, any(m["compared"] for m in measures)
        rows = []
        for m in measures:
            first = [m["name"]] if several else []
            first += [_plain(m["setting"].get(k, "")) for k in varied]
            for c in m["contenders"]:
                note = f"<br><small>{c['note']}</small>" if c["note"] else ""
                row = [*first, c["name"] + note, spread(c), m["unit"], *([_better(c)] if compared else [])]
                rows.append(row)
        head = [*(["measure"] if several else []), *varied, "contender", "median (range)", "unit"]
        head += ["fastft is better by"] if compared else []
        fixed = ", ".join(f"{k} {_plain(values[k][0])}" for k in keys if k not in varied)
        return f"{markdown(head, rows, len(head) - 2 - compared)}\n\n{_caption(results, bench, measures, fixed)}"

    return table


def _better(other: Measure) -> str:
    """How many times better fastft is than a peer, or the share that it reaches of a limit."""
    if not other["ratio"]:
        return ""
    return f"at {other['ratio']['median']:.0%} of it" if other["limit"] else times(other["ratio"])


def _plain(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)


def _caption(results: Results, bench: str, measures: Sequence[Measure], fixed: str) -> str:
    when = results.documents[bench]["date"][:10]
    skipped = {f"{c['name']} was not run: {c['skipped']}" for m in measures for c in m["skipped"]}
    return f"Measured {when}: {fixed}.{''.join(f' {s}.' for s in sorted(skipped))}"


def machine(results: Results) -> str:
    """Where and when everything was measured."""
    lines = []
    for date, document in sorted({d["date"]: d for d in results.documents.values()}.items()):
        benches = [bench for bench, d in results.documents.items() if d["date"] == date]
        facts = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in document["machine"].items() if v is not None)
        what, when = ", ".join(sorted(benches)), date[:16].replace("T", " ")
        gone = f" (a program that is no longer kept: `{document['program']}`)" if "program" in document else ""
        lines.append(f"- {what}: `{document['command']}`{gone}, {when}. {facts}.")
    return "\n".join(lines)


SUMMARY = (  # bench, measure, part of its setting, peer, what docs/benchmarks.md calls it
    ("augment", "Whole recipe", "500", "timm", "whole recipe, 500 px q90 files"),
    ("augment", "Whole recipe", "lossless", "timm", "whole recipe, original files"),
    ("augment", "Whole recipe", "lossless", "DALI CPU", "whole recipe, original files"),
    ("loader", "Loader, crop and flip, per core", "", "stock FFCV", "loader, crop and flip"),
    ("loader", "Loader, whole recipe, per core", "", "timm", "loader, whole recipe"),
    ("convert", "Conversion", "kept", "FFCV DatasetWriter", "convert, sizes kept"),
    ("step", "Training step", "fp32", "timm", "training step, B/16, fp32, CPU"),
    ("step", "Training step", "bf16", "timm", "training step, B/16, bf16, CPU"),
    ("step", "Training step, lower half frozen", "fp32", "timm", "the same with half its blocks frozen, fp32"),
)


def summary(results: Results) -> str:
    """A row of every benchmark."""
    rows = []
    for bench, name, part, peer, what in SUMMARY:
        m = next(m for m in results.measures(bench, name) if part in str(m["setting"].values()))
        other = contender(m, peer)
        own, note = figure(contender(m, "fastft")["median"]), f" ({other['note']})" if other["note"] else ""
        theirs, better = f"{peer}{note}: {figure(other['median'])}", times(other["ratio"])
        rows.append([what, f"{own} {m['unit']}", theirs, better])
    head = ["", "fastft", "other", "fastft is better by"]
    document = max(results.documents.values(), key=lambda d: d["date"])
    dates = sorted({results.documents[bench]["date"][:10] for bench, *_ in SUMMARY})
    where = f"{document['machine']['cores']} cores of {document['machine']['cpu']}, {' and '.join(dates)}"
    return f"{markdown(head, rows)}\n\nMedians of alternating rounds ({where}), ratios round by round with their range."


def processors(results: Results) -> str:
    """The main ratios on both kinds of processor that they were measured on."""
    ratios = {
        f"{name}{part and f', {part}'}": contender(
            next(m for m in results.measures(bench, name) if part in str(m["setting"].values())), peer
        )["ratio"]["median"]
        for bench, name, part, peer in (
            ("augment", "Whole recipe", "500", "timm"), ("augment", "Whole recipe", "lossless", "timm"),
            ("loader", "Loader, crop and flip, per core", "", "stock FFCV"),
        )
    }  # fmt: skip
    small, original, crop = (f"{value:.1f}" for value in ratios.values())
    others = [f"{results.processors['ratios'][key]:.1f}" for key in ratios]
    cpu = results.documents["augment"]["machine"]["cpu"]
    return (
        f"Whole recipe on one core of an {cpu}: {small} times timm's images per second from files of 500 px, {original} "
        f"times from original files; crop and flip: {crop} times stock FFCV's. "
        f"On an {results.processors['cpu']}: {others[0]}, {others[1]} and {others[2]} times."
    )


def demo(results: Results) -> str:
    """The contenders of `make demo`."""
    d = results.demo
    rows = [["always the largest class", f"{d.majority:.1f}", "", ""]]
    rows += [[c.title, *figure_cells(d, c.name)] for c in reversed(CONTENDERS)]
    head = ["", "top-1 %, ± standard error", "fine-tuning gains", "minutes of training"]
    return (
        f"{markdown(head, rows)}\n\n{d.train_images:,} photographs of solar cells to train on, n = {d.n} "
        f"others to validate on, 4 classes, {d.image_size} px; EMA after the last epoch. Gains are paired by image. "
        f"{d.cpu}, {len(d.seconds)} trainings, {d.date}."
    )


TABLES: dict[str, Callable[[Results], str]] = {
    "summary": summary,
    "processors": processors,
    "demo": demo,
    "recipes": lambda _: costs.recipes(),
    "recipes-not-run": costs.not_run,
    "readme-cost": lambda _: costs.recipes(costs.README_RECIPES, "docs/measurements/published.md"),
    "cost-published": costs.cost_published,
    "cost-families": costs.families,
    "cost-sentence": lambda _: costs.sentence("measurements/published.md"),
    "machine": machine,
    "recipe": comparison("augment", "Whole recipe"),
    "loader-core": comparison(
        "loader", "Loader, whole recipe, per core", "Loader, crop and flip, per core", "Loader, evaluation, per core"
    ),
    "loader-threads": comparison("loader", "Loader, whole recipe", "Loader, crop and flip"),
    "ffcv": comparison("ffcv", "Crop and flip", "Crop, flip, normalise", "Whole recipe"),
    "order": comparison("order", "Bytes read per epoch", "Disk requests per epoch"),
    "convert": comparison("convert", "Conversion"),
    "step": comparison("step", "Training step", "Training step, lower half frozen"),
    "step-mfu": comparison("step", "Training step, MFU"),
    "e2e": comparison("e2e", "End to end"),
    "models": costs.model_costs,
    "starts": costs.starts,
    "study-complete": study.complete,
    "study-ways": study.compared,
    "study-short": study.short,
    "study-summary": study.summary,
    "probe": probe.table,
    "readme-photos": lambda _: photos.summary(),
    "photos-epochs": lambda _: photos.beside(),
    "photos-seconds": lambda _: photos.beside(how=", as many seconds"),
    "photos-short": lambda _: photos.beside("loop, 5 epochs", ", 5 epochs"),
    "photos-whole": lambda _: photos.beside("loop, whole length", ", whole length", ("ours",)),
    "photos-whole-seconds": lambda _: photos.beside(
        "loop, whole length", ", whole length, as many seconds", photos.LONG
    ),
    "photos-head": lambda _: photos.beside("linear head", ", whole length", ("ours",), "linear head"),
    "photos-values": lambda _: photos.beside(
        "ours, earlier values, whole length", ", whole length", ("ours",), "earlier"
    ),
    "photos-larger": lambda _: photos.beside("loop, larger", ways=("auto",)),
}


# pictures


BARS = (  # title, measure, files, contenders by their label
    (
        "decode, crop, RandAugment, erase: original ImageNet files",
        "Whole recipe",
        "as they are, lossless",
        {"fastft": "fastft", "timm": "timm", "DALI": "DALI CPU", "torchvision": "torchvision v2"},
    ),
    (
        "decode, crop, flip: files of 500 px",
        "Loader, crop and flip, per core",
        "longest side 500, q90, 4:2:0",
        {"fastft": "fastft", "stock FFCV": "stock FFCV", "timm": "timm"},
    ),
)
BAR_LEFT, BAR_WIDTH, BAR, BAR_ROW, FASTEST = (96, 360, 15, 21, 2000)  # pixels, and images/s of a bar of BAR_WIDTH


def speed(results: Results, theme: str) -> str:
    """The README's picture: images per second of one core."""
    bar = Markup('<rect class="bar {}" x="{}" y="{}" width="{:.1f}" height="{}"/>')
    parts, y = [], 0
    for title, name, files, shown in BARS:
        measures = results.measures("augment", name) + results.measures("loader", name)
        measure = next(m for m in measures if files in m["setting"].values())
        parts.append(svg_text(BAR_LEFT, y + 15, title, "start"))
        y += 22
        for label, who in shown.items():
            rate = contender(measure, who)["median"]
            width = BAR_WIDTH * rate / FASTEST
            style = "accent" if who == "fastft" else ""
            parts += [
                bar.format(style, BAR_LEFT, y, width, BAR),
                svg_text(BAR_LEFT - 8, y + 12, label, "end"),
                svg_text(BAR_LEFT + width + 6, y + 12, f"{rate:,.0f}", "start"),
            ]
            y += BAR_ROW
        y += 8
    caption = f"images per second of one core, {results.documents['augment']['machine']['cpu']}"
    parts.append(svg_text(BAR_LEFT, y + 12, caption, "start"))
    return svg_file(parts, BAR_LEFT + BAR_WIDTH + 64, y + 20, theme)


PICTURES: dict[str, Callable[[Results, str], str]] = {"speed": speed, "study": study.picture}


def filled(text: str, results: Results) -> str:
    """The page with every table made anew."""
    return BLOCK.sub(lambda block: f"{block[1]}{TABLES[block[2]](results)}\n{block[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a table is out of date")
    check = parser.parse_args().check
    results = Results(RESULTS)
    new = {TRAFFIC: costs.traced_traffic()}
    if not check:
        TRAFFIC.write_text(new[TRAFFIC], encoding="utf-8")  # the tables' costs are read from it
    new |= {page: filled(page.read_text(encoding="utf-8"), results) for page in PAGES}
    for name, draw in PICTURES.items():
        new |= {IMAGES / f"{name}-{theme}.svg": draw(results, theme) for theme in ("light", "dark")}
    stale = [path for path, text in new.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if check and stale:
        sys.exit(f"out of date: {', '.join(p.name for p in stale)}; run: python benchmarks/tables.py")
    for path in stale:
        path.write_text(new[path], encoding="utf-8")


if __name__ == "__main__":
    main()
