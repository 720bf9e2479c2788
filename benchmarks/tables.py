"""Write the tables of README.md and docs/benchmarks.md from benchmarks/results/*.json, so that no number is typed by hand.

The demo's figures come from runs/demo/figures.json of `make demo`, kept as benchmarks/results/demo.json; costs are
modelled by `fastft cost`. A table is placed between `<!-- bench:NAME -->` and `<!-- /bench -->`; NAME is a key of TABLES. If
several result files contain a benchmark, the newest is used. Ratios are medians over paired rounds, with the lowest and highest.

Run: python benchmarks/tables.py [--check]     (--check writes nothing; exit code 1 if a table is out of date)
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from markdown_table import markdown
from model_tables import README, model_costs, shown_hours, trained_towers

from fastft.bench.demo_trainings import CONTENDERS
from fastft.bench.harness import LIMIT
from fastft.bench.scaling_bench import TOGETHER
from fastft.cost.frontier import price_combinations
from fastft.cost.mfu import PUBLISHED_MFU, RECORD_MFU, reference_mfu
from fastft.cost.model import MACHINE_GPUS, estimate, predict_published
from fastft.cost.overheads import REFERENCE
from fastft.cost.table import CostQuery, price_recipes
from fastft.machine.gpus import GPUS
from fastft.model import load_arch
from fastft.recipe import load_recipe
from fastft.report.page import figure
from fastft.search.sweep_report import as_published

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{page}.md" for page in ("benchmarks", "cost", "large-data", "models", "photos")),
)
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- bench:([\w-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)

# A100-hours of the paper's logs: 8 x 6:01:54 and 8 x 13:12:11 of wall time
LOGS = {"final_b16": ("B/16", 48.3), "final_l14": ("L/14", 105.6)}
GOAL_TOP1 = 85.0
COST_RECIPES, V100_PRICE = ("final_b16", "frugal_b16", "frugal_b16_half"), 2.48
FAMILIES = ("b16", "b16_384", "l14", "l14_336")  # models; a recipe is named KIND_MODEL or KIND_MODEL_LEVER
SMALL_DATA = {"ridge": "ridge regression", "photos": "`train photos`", "tuned": "`tune photos`"}
BY_SIZE = "Loader, whole recipe, by size"
Measure = dict[str, Any]


class Results:
    """The newest document of each benchmark, and the demo's figures."""

    def __init__(self, folder: Path) -> None:
        self.demo: dict[str, Any] = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
        self.documents: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.glob("*.json")):
            document = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(document, dict) and "measures" in document:
                for bench in {m["bench"] for m in document["measures"]}:
                    if document["date"] > self.documents.get(bench, {"date": ""})["date"]:
                        self.documents[bench] = document

    def measures(self, bench: str, *names: str) -> list[Measure]:
        found = [m for m in self.documents[bench]["measures"] if m["bench"] == bench]
        return [m for name in names for m in found if m["name"] == name]


# cells


def spread(contender: Measure) -> str:
    if len(contender["rounds"]) < 2:
        return figure(contender["median"])
    low, high = figure(contender["min"]), figure(contender["max"])
    return f"{figure(contender['median'])} ({low}-{high})"


def ratios(measure: Measure, peer: Measure) -> list[float]:
    """How many times better fastft is than the peer, round by round."""
    own = contender(measure, "fastft")
    pairs = zip(own["rounds"], peer["rounds"], strict=True)
    return [b / a if measure.get("better") == "lower" else a / b for a, b in pairs]


def times(values: Sequence[float]) -> str:
    return f"{median(values):.2f}x ({min(values):.2f}-{max(values):.2f})"


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
        several, compared = len(names) > 1, any(_compared(m) for m in measures)
        rows = []
        for m in measures:
            first = [m["name"]] if several else []
            first += [_plain(m["setting"].get(k, "")) for k in varied]
            for c in (c for c in m["contenders"] if "median" in c):
                note = f"<br><small>{c['note']}</small>" if c["note"] else ""
                better = _better(m, c) if _compared(m) and c["name"] != "fastft" else ""
                row = [*first, c["name"] + note, spread(c), m["unit"], *([better] if compared else [])]
                rows.append(row)
        head = [*(["measure"] if several else []), *varied, "contender", "median (range)", "unit"]
        head += ["fastft is better by"] if compared else []
        fixed = ", ".join(f"{k} {_plain(values[k][0])}" for k in keys if k not in varied)
        return (
            f"{markdown(head, rows, len(head) - 2 - compared)}\n\n{_caption(results, bench, measures, fixed)}"
        )

    return table


def _compared(measure: Measure) -> bool:
    return any(c["name"] == "fastft" for c in measure["contenders"]) and len(measure["contenders"]) > 1


def _better(measure: Measure, other: Measure) -> str:
    """How many times better fastft is than a peer, or the share that it reaches of a limit."""
    found = ratios(measure, other)
    return f"at {median(found):.0%} of it" if other.get("limit") else times(found)


def _reached(measure: Measure) -> str:
    """The share that fastft reaches of the measure's limit; empty if it has none."""
    limit = next((c for c in measure["contenders"] if c.get("limit") and "median" in c), None)
    return "" if limit is None else f"{median(ratios(measure, limit)):.0%}"


def _without_empty_column(head: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Without the last column if no row has it: results measured before there were limits."""
    if any(row[-1] for row in rows):
        return head, rows
    return head[:-1], [row[:-1] for row in rows]


def _plain(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)


def _caption(results: Results, bench: str, measures: Sequence[Measure], fixed: str) -> str:
    kind = "Modelled, not measured." if any(m.get("modelled") for m in measures) else "Measured"
    when = results.documents[bench]["date"][:10]
    skipped = {
        f"{c['name']} was not run: {c['skipped']}"
        for m in measures
        for c in m["contenders"]
        if "skipped" in c
    }
    head = f"{kind} {when}" if kind == "Measured" else f"{kind} From figures of {when}"
    return f"{head}: {fixed}.{''.join(f' {s}.' for s in sorted(skipped))}"


def ops(results: Results) -> str:
    """A row per op, and their mean."""
    measures = results.measures("augment", "RandAugment op")
    rows, all_ratios = [], []
    for m in measures:
        peer = contender(m, "Pillow")
        ratio = ratios(m, peer)
        all_ratios.append(median(ratio))
        own = contender(m, "fastft")
        rows.append([m["setting"]["op"], spread(own), spread(peer), times(ratio), _reached(m)])
    rows.append(["mean of the ratios", "", "", f"{sum(all_ratios) / len(all_ratios):.2f}x", ""])
    s = measures[0]["setting"]
    fixed = f"{s['size']} px, magnitude {s['magnitude']}, images {s['images']}, rounds {s['rounds']}"
    head, rows = _without_empty_column(
        ["op", "fastft, ms", "Pillow, ms", "fastft is better by", "share of the limit"], rows
    )
    return f"{markdown(head, rows, 1)}\n\n{_caption(results, 'augment', measures, fixed)}"


def time_of_parts(results: Results) -> str:
    """Milliseconds of an image of the whole recipe, by part, beside the limit of each; the last part is what the others leave."""

    def parts(files: str, recipe: Measure, name: str) -> list[tuple[str, float]]:
        decode = next(m for m in results.measures("decode", "Crop decode") if m["setting"]["files"] == files)
        resize = next(
            m for m in results.measures("augment", "Bicubic resize") if "plan" in m["setting"]["crops"]
        )
        whole, decoding = (1000 / contender(m, name)["median"] for m in (recipe, decode))
        resizing = contender(resize, name)["median"]
        rest = whole - decoding - resizing
        return [
            ("decode the crop", decoding),
            ("resize", resizing),
            ("ops, normalise, erase", rest),
            ("all", whole),
        ]

    measures, rows = results.measures("augment", "Whole recipe"), []
    for recipe in measures:
        files = recipe["setting"]["our files"]
        for (part, own), (_, limit) in zip(
            *(parts(files, recipe, n) for n in ("fastft", LIMIT)), strict=True
        ):
            rows.append([files, part, f"{own:.3f}", f"{limit:.3f}", f"{limit / own:.0%}"])
    head = ["files", "part", "fastft, ms", "limit, ms", "share of the limit"]
    return f"{markdown(head, rows, 2)}\n\n{_caption(results, 'augment', measures, 'per image, one core')}"


# work, how many times as fast as which peer, and where it is measured: bench, measure, a value of its setting
NOT_REACHED = (
    ("decode a random crop, original files", 1.6, "DALI image_random_crop", "decode", "Crop decode", "as they are, lossless"),
    ("loader, evaluation", 2.5, "stock FFCV", "loader", "Loader, evaluation, per core", ""),
    ("convert, at most 500 px", 2.2, "FFCV DatasetWriter", "convert", "Conversion", "at most 500 px"),
)  # fmt: skip


def not_reached(results: Results) -> str:
    """Aims that were not reached, and the share of the limit that they ask for."""
    rows = []
    for work, aim, peer, bench, name, value in NOT_REACHED:
        m = next(m for m in results.measures(bench, name) if not value or value in m["setting"].values())
        needed = aim * contender(m, peer)["median"] / contender(m, LIMIT)["median"]
        ratio = median(ratios(m, contender(m, peer)))
        rows.append([work, f"{aim}x {peer}", f"{ratio:.2f}x", _reached(m), f"{needed:.0%}"])
    return markdown(["work", "aim", "reached", "share of the limit", "share that the aim needs"], rows, 2)


def machine(results: Results) -> str:
    """Where and when everything was measured."""
    lines = []
    for date, document in sorted({d["date"]: d for d in results.documents.values()}.items()):
        benches = [bench for bench, d in results.documents.items() if d["date"] == date]
        facts = ", ".join(
            f"{k.replace('_', ' ')} {v}" for k, v in document["machine"].items() if v is not None
        )
        lines.append(
            f"- {', '.join(sorted(benches))}: `{document['command']}`, {date[:16].replace('T', ' ')}. {facts}."
        )
    return "\n".join(lines)


def words(results: Results) -> str:
    """Sentences of `fastft bench e2e` about the bottleneck."""
    notes = [n for n in results.documents["e2e"]["notes"] if n.startswith(("End to end", "Modelled"))]
    return "\n".join(f"- {note}" for note in notes)


def if_measured(bench: str, table: Callable[[Results], str], name: str = "") -> Callable[[Results], str]:
    """The table, or a sentence if no result of the benchmark, or none of a measure's name, is there yet."""

    def shown(results: Results) -> str:
        if bench not in results.documents or (name and not results.measures(bench, name)):
            return f"Not measured yet: `fastft bench {bench} --out benchmarks/results`."
        return table(results)

    return shown


def scaling_check(results: Results) -> str:
    """Threads of the measuring machine: measured, and what the model says."""
    measures = results.measures("scaling", "Loader on this machine")
    rows = []
    for m in measures:
        s, model = m["setting"], contender(m, "model")
        cells = [s["files"], s["recipe"], str(s["threads"]), spread(contender(m, "measured"))]
        rows.append([*cells, figure(model["median"]), model["note"]])
    head = ["files", "recipe", "threads", "measured, images/s (range)", "model, images/s", "error"]
    s = measures[0]["setting"]
    fixed = f"batch {s['batch']}, rounds {s['rounds']}; the model's figures are modelled"
    return f"{markdown(head, rows, 3)}\n\n{_caption(results, 'scaling', [], fixed)}"


def across(name: str, column: str, fixed: str) -> Callable[[Results], str]:
    """Modelled measures as columns, by a part of their setting; a row per contender and the rest of the setting."""

    def table(results: Results) -> str:
        measures = results.measures("scaling", name)
        columns = list(dict.fromkeys(m["setting"][column] for m in measures))
        keys = [k for k in measures[0]["setting"] if k not in (column, "GB/s", "host")]
        rows: dict[tuple[str, ...], dict[Any, str]] = {}
        for m in measures:
            first = [str(m["setting"][k]) for k in keys]
            for c in m["contenders"]:
                rows.setdefault((*first, c["name"]), {})[m["setting"][column]] = figure(c["median"])
        head = [*keys, "", *(f"{c} {column}" if isinstance(c, int) else str(c) for c in columns)]
        cells = [[*first, *(found.get(c, "") for c in columns)] for first, found in rows.items()]
        return f"{markdown(head, cells, len(keys) + 1)}\n\n{_caption(results, 'scaling', measures, fixed)}"

    return table


def scaling_host(results: Results) -> str:
    """Loading limits of a host with eight H100, its first bottleneck, and the share of its throughput that training needs."""
    measures = results.measures("scaling", "What eight H100 can be sent")
    (demand,) = results.measures("scaling", "What eight H100 train")
    lines = []
    for m in measures:
        # a note: in the first epoch only
        parts = [c for c in m["contenders"] if not c["note"] and c["name"] != TOGETHER]
        first, total = min(parts, key=lambda c: c["median"]), contender(m, TOGETHER)["median"]
        taken = ", ".join(f"{d['name']} {d['median'] / total:.0%}" for d in demand["contenders"])
        lines.append(
            f"- {m['setting']['recipe']}, files {m['setting']['files']}: the bottleneck is {first['name']}, at "
            f"{figure(first['median'])} images/s. "
            f"Training on eight H100 needs this share of the {figure(total)} images/s that cores and memory allow together: "
            f"{taken}."
        )
    notes = dict.fromkeys(
        f"- {m['setting']['files']}: {c['note']}." for m in measures for c in m["contenders"] if c["note"]
    )
    table = across("What eight H100 can be sent", "files", f"images/s, {measures[0]['setting']['host']}")(
        results
    )
    return "\n".join([table, "", *lines, *notes])


def scaling_demand(results: Results) -> str:
    """Images/s that eight H100 train."""
    (m,) = results.measures("scaling", "What eight H100 train")
    rows = [[c["name"], c["note"], figure(c["median"])] for c in m["contenders"]]
    head = ["model, basis of the MFU", "", "images/s"]
    return f"{markdown(head, rows, 2)}\n\n{_caption(results, 'scaling', [m], 'eight GPUs, 224 px')}"


SUMMARY = (  # bench, measure, part of its setting, peer, what the README calls it
    ("decode", "Crop decode", "500", "stock FFCV, decoder alone", "decode a random crop, 500 px q90 files"),
    ("decode", "Crop decode", "500", "stock FFCV Loader", "decode a random crop, 500 px q90 files"),
    ("decode", "Crop decode", "lossless", "stock FFCV, decoder alone", "decode a random crop, original files"),
    ("decode", "Crop decode", "lossless", "DALI image_random_crop", "decode a random crop, original files"),
    ("augment", "Whole recipe", "500", "timm", "whole recipe, 500 px q90 files"),
    ("augment", "Whole recipe", "lossless", "timm", "whole recipe, original files"),
    ("augment", "Whole recipe", "lossless", "DALI CPU", "whole recipe, original files"),
    ("loader", "Loader, crop and flip, per core", "", "stock FFCV", "loader, crop and flip"),
    ("loader", "Loader, whole recipe, per core", "", "timm", "loader, whole recipe"),
    ("loader", "Peak memory", "", "stock FFCV", "loader's peak memory, batch 256"),
    ("loader", "Peak memory beyond imports", "", "stock FFCV", "the same beyond imports"),
    ("convert", "Conversion", "kept", "FFCV DatasetWriter", "convert, sizes kept"),
    ("step", "Training step", "fp32", "timm", "training step, B/16, fp32, CPU"),
    ("step", "Training step", "bf16", "timm", "training step, B/16, bf16, CPU"),
    ("step", "Training step, lower half frozen", "fp32", "timm", "the same with half its blocks frozen, fp32"),
)  # fmt: skip


# of SUMMARY: what, peer
HEADLINES = (
    "decode a random crop, 500 px q90 files, stock FFCV Loader",
    "whole recipe, original files, timm",
    "loader, whole recipe, timm",
    "training step, B/16, bf16, CPU, timm",
)


def summary(results: Results) -> str:
    """A row of every benchmark."""
    return _summarised(results, SUMMARY)


def headlines(results: Results) -> str:
    """The rows that the README shows."""
    return _summarised(results, [row for row in SUMMARY if f"{row[4]}, {row[3]}" in HEADLINES])


def _summarised(results: Results, chosen: Sequence[tuple[str, str, str, str, str]]) -> str:
    rows = []
    for bench, name, part, peer, what in chosen:
        m = next(m for m in results.measures(bench, name) if part in str(m["setting"].values()))
        other = contender(m, peer)
        own, note = figure(contender(m, "fastft")["median"]), f" ({other['note']})" if other["note"] else ""
        rows.append(
            [
                what,
                f"{own} {m['unit']}",
                f"{peer}{note}: {figure(other['median'])}",
                times(ratios(m, other)),
                _reached(m),
            ]
        )
    head, rows = _without_empty_column(
        ["", "fastft", "other", "fastft is better by", "share of the limit"], rows
    )
    document = max(results.documents.values(), key=lambda d: d["date"])
    dates = sorted({results.documents[bench]["date"][:10] for bench, *_ in chosen})
    where = f"{document['machine']['cores']} cores of {document['machine']['cpu']}, {' and '.join(dates)}"
    return f"{markdown(head, rows, 1)}\n\nMedians of alternating rounds ({where}), ratios round by round with their range."


def demo(results: Results) -> str:
    """The contenders of `make demo`."""
    d = results.demo
    rows = [["always the largest class", f"{d['majority']:.1f}", "", ""]]
    for contender in reversed(CONTENDERS):
        name = contender.name
        top1 = f"{d['top1'][name]:.1f} ± {d['standard_error'][name]:.1f}"
        gain = f"{d['gain'][name]:+.1f} ± {d['gain_standard_error'][name]:.1f}" if name in d["gain"] else ""
        rows.append([contender.title, top1, gain, f"{d['seconds'][name] / 60:.1f}"])
    head = ["", "top-1 %, ± standard error", "fine-tuning gains", "minutes of training"]
    return (
        f"{markdown(head, rows, 1)}\n\n{d['train_images']:,} photographs of solar cells to train on, n = {d['n']} "
        f"others to validate on, 4 classes, {d['image_size']} px; EMA after the last epoch. Gains are paired by image. "
        f"{d['cpu']}, {len(d['seconds'])} trainings, {d['date']}."
    )


# MFUs of the cost table, by basis: heading of the column
COST_COLUMNS = {
    "published": "a published ViT",
    "roofline": "our roofline (upper bound)",
    "record": "a BERT record",
    "reference": "the paper's own run",
}


def cost(_: Results) -> str:
    """The output of `fastft cost` for the B/16 recipes on V100, one column per MFU."""
    recipes = [load_recipe(ROOT / "rcp" / f"{name}.yaml") for name in COST_RECIPES]
    priced = price_recipes(recipes, CostQuery("V100", price=V100_PRICE))
    rows, sources = [], dict.fromkeys(COST_COLUMNS, "")
    for r in priced["recipes"]:
        by_basis = {e["basis"]: e for e in r["estimates"]}
        cells = [f"{by_basis[b]['gpu_hours']:.1f} (${by_basis[b]['money']:.0f})" for b in COST_COLUMNS]
        rows.append([f"`{r['recipe']}`", f"{r['expected_top1']:g}", *cells])
        sources |= {
            b: f"{title}: {by_basis[b]['value']:.1%}, {by_basis[b]['source']}"
            for b, title in COST_COLUMNS.items()
        }
    head = [
        "recipe",
        "expected top-1",
        *(f"GPU-hours at the MFU of {title}" for title in COST_COLUMNS.values()),
    ]
    assumed = "; ".join(f"{a['what']}: {a['value']:,.0f}" for a in priced["assumptions"])
    return (
        f"{markdown(head, rows, 2)}\n\nModelled, not measured; on eight GPUs, MFU relative to {priced['peak_flops'] / 1e12:g} "
        f"TFLOP/s, money at ${V100_PRICE} per GPU-hour. MFU of {'; of '.join(sources.values())}. Assumed: {assumed}."
    )


def cost_goal(_: Results) -> str:
    """The cheapest way for B/16 to 85 %, with and without evidence, on V100."""
    record, recipe = RECORD_MFU["V100"].value, load_recipe("frugal_b16")
    shown = price_combinations(recipe, "V100", record, GOAL_TOP1)["combinations"][0]
    names = [path.stem for path in (ROOT / "rcp").glob("*_b16*.yaml") if "384" not in path.stem]
    hours = {
        n: estimate(load_recipe(n), GPUS["V100"], MACHINE_GPUS, RECORD_MFU["V100"]).gpu_hours for n in names
    }
    cheapest = min(hours, key=lambda name: hours[name])
    published = predict_published(load_recipe(cheapest))["V100"]["hours"]
    return (
        f"The cheapest way to {GOAL_TOP1:g} % that these sources show takes {shown['gpu_hours']['V100']:.1f} V100-hours at the "
        f"record MFU of {record:.0%} ({', '.join(shown['levers'])}: {shown['expected_top1']:.2f} %). The cheapest recipe, "
        f"`{cheapest}`, takes {hours[cheapest]:.1f} at the record and {published:.1f} at the MFU published for a ViT, but nobody "
        "has run it on ImageNet."
    )


def recipes(_: Results) -> str:
    """Every recipe of the paper's models with its cost on three GPUs, each model's dearest first."""
    found: dict[str, list[tuple[float, list[str]]]] = {family: [] for family in FAMILIES}
    for path in sorted((ROOT / "rcp").glob("[bfq]*_*.yaml")):
        family = max((f for f in FAMILIES if path.stem.partition("_")[2].startswith(f)), key=len)
        recipe = load_recipe(path)
        at = predict_published(recipe)
        record = estimate(recipe, GPUS["V100"], MACHINE_GPUS, RECORD_MFU["V100"]).gpu_hours
        top1 = "not run" if recipe.about.top1 is None else as_published(recipe.about.top1)
        cells = [
            f"`{recipe.name}`",
            top1,
            shown_hours(at["V100"]),
            f"{record:.1f}",
            *(shown_hours(at[gpu]) for gpu in ("A100", "H100")),
        ]
        found[family].append((at["V100"]["hours"], cells))
    rows = [cells for family in FAMILIES for _, cells in sorted(found[family], key=lambda row: -row[0])]
    head = [
        "recipe",
        "expected top-1",
        "V100-hours",
        "V100-hours at the record MFU",
        "A100-hours",
        "H100-hours",
    ]
    shares = ", ".join(f"{mfu.value:.1%} on {gpu}" for gpu, mfu in PUBLISHED_MFU.items())
    return (
        f"{markdown(head, rows, 1)}\n\nModelled on eight GPUs at the MFU published for a ViT ({shares}); the record is "
        f"{RECORD_MFU['V100'].value:.0%} ({RECORD_MFU['V100'].source}). * GPUs wait for the loader, "
        "with the cores of a usual cloud machine. Where expected top-1 says 'not run', nobody has "
        "measured what smaller images or dropped patches cost."
    )


def cost_check(_: Results) -> str:
    """The cost model compared with the logs of the paper's own runs."""
    rows = []
    for name, (title, logged) in LOGS.items():
        recipe = load_recipe(ROOT / "rcp" / f"{name}.yaml")
        mfu = reference_mfu(load_arch(recipe.model.arch))
        hours = estimate(recipe, GPUS["A100"], MACHINE_GPUS, mfu, REFERENCE).gpu_hours
        rows.append([title, f"{mfu.value:.1%}", f"{hours:.1f}", f"{logged}"])
    head = ["the paper's own run", "MFU, from its log", "A100-hours, modelled", "A100-hours, from its log"]
    return (
        f"{markdown(head, rows, 1)}\n\nThe start of a validation pass, {REFERENCE.pass_start_seconds} s, is fitted to the "
        "B/16 log, so B/16 agrees by construction. L/14 is the test: only the MFU is taken from its log."
    )


def small_data(_: Results) -> str:
    """`train photos` and `tune photos` against ridge regression, of `benchmarks/small_data.py`."""
    found = json.loads((RESULTS / "small_data.json").read_text(encoding="utf-8"))
    rows, tests = [], {}
    for photos in found["sets"]:
        name, size = photos["set"], f"{photos['size']} px"
        data = "CIFAR-10" if name.isdigit() else name  # sets of CIFAR-10 are named by their number of images
        title = f"{data}, {int(name):,} images, {size}" if name.isdigit() else f"{data}, {size}"
        tests[data] = f"{photos['n']:,} of {data}{'' if photos['same_images'] else ', others for each seed'}"
        for row in photos["rows"]:
            gains = [_gain(row["gains"].get(other)) for other in ("ridge", "photos")]
            minutes = "" if row["minutes"] is None else f"{row['minutes']:.0f}"
            rows.append(
                [title, SMALL_DATA[row["row"]], f"{row['top1']:.1f}", *gains, str(row["seeds"]), minutes]
            )
            title = ""
    head = ["images", "command", "top-1 %", "against ridge", "against `train photos`", "seeds", "minutes"]
    return (
        f"{markdown(head, rows, 2)}\n\nTest images on which nothing was chosen: {', '.join(tests.values())}. Differences "
        "are paired by seed and image; ± is the larger of their standard errors over seeds and over images. Time of a core of "
        f"{', '.join(found['cpus'])}, beside another training. `benchmarks/small_data.py` makes these figures."
    )


def _gain(gain: Mapping[str, Any] | None) -> str:
    """A difference in points with the larger of its two standard errors, such as "+1.2 ± 0.3"; "" for None."""
    if gain is None:
        return ""
    return f"{gain['mean']:+.1f} ± {max(gain['seed_error'] or 0, gain['image_error']):.1f}"


TABLES: dict[str, Callable[[Results], str]] = {
    "summary": summary,
    "headlines": headlines,
    "demo": demo,
    "small-data": small_data,
    "cost": cost,
    "cost-check": cost_check,
    "recipes": recipes,
    "cost-goal": cost_goal,
    "machine": machine,
    "decode": comparison("decode", "Crop decode"),
    "recipe": comparison("augment", "Whole recipe"),
    "resize": comparison("augment", "Bicubic resize"),
    "ops": ops,
    "time-of-parts": time_of_parts,
    "not-reached": not_reached,
    "loader-core": comparison(
        "loader", "Loader, whole recipe, per core", "Loader, crop and flip, per core", "Loader, evaluation, per core"
    ),
    "loader-threads": comparison("loader", "Loader, whole recipe", "Loader, crop and flip"),
    "loader-sizes": if_measured("loader", comparison("loader", BY_SIZE), BY_SIZE),
    "loader-cold": comparison("loader", "Loader, whole recipe, cold"),
    "loader-start": comparison(
        "loader", "First batch", "First batch, with imports", "Peak memory", "Peak memory beyond imports"
    ),
    "loader-open": comparison("loader", "Opening ImageNet's length"),
    "open": comparison("open", "Time", "CPU time", "Memory"),
    "order": comparison("order", "Bytes read per epoch", "Disk requests per epoch"),
    "convert": comparison("convert", "Conversion"),
    "step": comparison("step", "Training step", "Training step, lower half frozen"),
    "step-mfu": comparison("step", "Training step, MFU"),
    "e2e": comparison("e2e", "End to end", "End to end, the loader alone"),
    "split": comparison("e2e", "Where a step's time goes"),
    "loader-work": comparison("e2e", "What the loader's time goes to"),
    "gpus": comparison(
        "e2e", "Cores that feed the GPUs, the GPU augments", "Cores that feed the GPUs, the CPU augments"
    ),
    "words": words,
    **{
        name: if_measured("scaling", table)
        for name, table in {
            "scaling-check": scaling_check,
            "scaling-bytes": across("Bytes of an image", "files", "kB per image"),
            "scaling-cores": across(
                "Loader on more cores", "cores", "images/s, eight processes unless said otherwise"
            ),
            "scaling-demand": scaling_demand,
            "scaling-host": scaling_host,
        }.items()
    },
    "models": lambda _: model_costs(),
    "models-readme": lambda _: model_costs(README),
    "towers": lambda _: trained_towers(),
}  # fmt: skip


def filled(text: str, results: Results) -> str:
    """The page with every table made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]](results)}\n{found[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 where a table is out of date"
    )
    check = parser.parse_args().check
    results = Results(RESULTS)
    stale = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = filled(text, results)
        if new != text:
            stale.append(page.name)
            if not check:
                page.write_text(new, encoding="utf-8")
    if check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run: python benchmarks/tables.py")


if __name__ == "__main__":
    main()
