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
from dataclasses import astuple
from functools import cache
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any

import study
from markupsafe import Markup

from beton_tools.base.console import markdown_table as markdown
from fastft.bench.demo import CONTENDERS, figure_cells
from fastft.cost.price import (
    MACHINE_GPUS,
    REFERENCE,
    CostQuery,
    estimate,
    format_hours,
    predict,
    price_recipes,
    reference_mfu,
)  # fmt: skip
from fastft.cost.published import PUBLISHED_RUNS
from fastft.cost.roofline import K, implied_k
from fastft.cost.traffic import KERNELS, trace_image, traffic_key
from fastft.cost.work import count_parameters
from fastft.machine.gpus import GPUS, MAIN_GPUS
from fastft.model import count_flops, load_arch
from fastft.model.recipe_model import find_phases, with_phase
from fastft.model.timm_arch import pretrained_cfg
from fastft.recipe import Recipe, load_recipe
from fastft.recipe.automatic import LARGE, paper_recipe
from fastft.recipe.constants import TIMM
from fastft.recipe.recipe_file import recipe_names
from fastft.report.charts import render_file, svg_file
from fastft.report.page import figure
from fastft.search.sweep import as_published

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{page}.md"
        for page in ("benchmarks", "cost", "large-data", "models", "photos", "study")
    ),
)
TRAFFIC = ROOT / "fastft" / "cost" / "traffic.json"
RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
BLOCK = re.compile(r"(<!-- bench:([\w-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)

# A100-hours of the paper's logs: 8 x 6:01:54 and 8 x 13:12:11 of wall time
LOGS = {"final_b16": ("B/16", 48.3), "final_l14": ("L/14", 105.6)}
README_RECIPES = ("final_b16", "frugal_b16", "frugal_b16_half", "final_l14")
COST_RECIPES = ("final_b16", "frugal_b16", "frugal_b16_half")
FAMILIES = ("b16", "b16_384", "l14", "l14_336")  # models; a recipe is named KIND_MODEL or KIND_MODEL_LEVER
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


def _plain(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)


def _caption(results: Results, bench: str, measures: Sequence[Measure], fixed: str) -> str:
    kind = "Modelled, not measured." if any(m.get("modelled") for m in measures) else "Measured"
    when = results.documents[bench]["date"][:10]
    all_contenders = [c for m in measures for c in m["contenders"]]
    skipped = {f"{c['name']} was not run: {c['skipped']}" for c in all_contenders if "skipped" in c}
    head = f"{kind} {when}" if kind == "Measured" else f"{kind} From figures of {when}"
    return f"{head}: {fixed}.{''.join(f' {s}.' for s in sorted(skipped))}"


def ops(results: Results) -> str:
    """A row per op, and their mean."""
    measures = results.measures("augment", "RandAugment op")
    rows, found = [], []
    for m in measures:
        own, peer = contender(m, "fastft"), contender(m, "Pillow")
        found.append(median(ratios(m, peer)))
        rows.append([m["setting"]["op"], spread(own), spread(peer), times(ratios(m, peer))])
    rows.append(["mean of the ratios", "", "", f"{fmean(found):.2f}x"])
    s = measures[0]["setting"]
    fixed = f"{s['size']} px, magnitude {s['magnitude']}, images {s['images']}, rounds {s['rounds']}"
    head = ["op", "fastft, ms", "Pillow, ms", "fastft is better by"]
    return f"{markdown(head, rows)}\n\n{_caption(results, 'augment', measures, fixed)}"


def machine(results: Results) -> str:
    """Where and when everything was measured."""
    lines = []
    for date, document in sorted({d["date"]: d for d in results.documents.values()}.items()):
        benches = [bench for bench, d in results.documents.items() if d["date"] == date]
        facts = ", ".join(
            f"{k.replace('_', ' ')} {v}" for k, v in document["machine"].items() if v is not None
        )
        what, when = ", ".join(sorted(benches)), date[:16].replace("T", " ")
        lines.append(f"- {what}: `{document['command']}`, {when}. {facts}.")
    return "\n".join(lines)


def words(results: Results) -> str:
    """Sentences of `fastft bench e2e` about the bottleneck."""
    notes = [n for n in results.documents["e2e"]["notes"] if n.startswith(("End to end", "Modelled"))]
    return "\n".join(f"- {note}" for note in notes)


SUMMARY = (  # bench, measure, part of its setting, peer, what docs/benchmarks.md calls it
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


def summary(results: Results) -> str:
    """A row of every benchmark."""
    rows = []
    for bench, name, part, peer, what in SUMMARY:
        m = next(m for m in results.measures(bench, name) if part in str(m["setting"].values()))
        other = contender(m, peer)
        own, note = figure(contender(m, "fastft")["median"]), f" ({other['note']})" if other["note"] else ""
        theirs, better = f"{peer}{note}: {figure(other['median'])}", times(ratios(m, other))
        rows.append([what, f"{own} {m['unit']}", theirs, better, _reached(m)])
    head = ["", "fastft", "other", "fastft is better by", "share of the limit"]
    document = max(results.documents.values(), key=lambda d: d["date"])
    dates = sorted({results.documents[bench]["date"][:10] for bench, *_ in SUMMARY})
    where = f"{document['machine']['cores']} cores of {document['machine']['cpu']}, {' and '.join(dates)}"
    return f"{markdown(head, rows)}\n\nMedians of alternating rounds ({where}), ratios round by round with their range."


def demo(results: Results) -> str:
    """The contenders of `make demo`."""
    d = results.demo
    rows = [["always the largest class", f"{d['majority']:.1f}", "", ""]]
    rows += [[c.title, *figure_cells(d, c.name)] for c in reversed(CONTENDERS)]
    head = ["", "top-1 %, ± standard error", "fine-tuning gains", "minutes of training"]
    return (
        f"{markdown(head, rows)}\n\n{d['train_images']:,} photographs of solar cells to train on, n = {d['n']} "
        f"others to validate on, 4 classes, {d['image_size']} px; EMA after the last epoch. Gains are paired by image. "
        f"{d['cpu']}, {len(d['seconds'])} trainings, {d['date']}."
    )


def cost(_: Results) -> str:
    """Expected hours of the B/16 recipes on each main GPU, with the range from the roofline to the slowest published run."""
    recipes = [load_recipe(ROOT / "rcp" / f"{name}.yaml") for name in COST_RECIPES]
    priced = [price_recipes(recipes, CostQuery(gpu)) for gpu in MAIN_GPUS]
    rows, sources = [], []
    for k, recipe in enumerate(recipes):
        cells = []
        for card in priced:
            hours = {e["basis"]: e["gpu_hours"] for e in card["recipes"][k]["estimates"]}
            cells.append(f"{hours['expected']:.1f} ({hours['roofline']:.1f}-{hours['published']:.1f})")
        rows.append([f"`{recipe.name}`", f"{recipe.about.top1:g}", *cells])
    for card in priced:
        by_basis = {e["basis"]: e for e in card["recipes"][0]["estimates"]}
        shown = "; ".join(f"{e['value']:.1%} {b}, {e['source']}" for b, e in by_basis.items())
        sources.append(
            f"MFU of `{recipes[0].name}` on {card['gpu']} ({card['peak_flops'] / 1e12:g} TFLOP/s): {shown}."
        )
    assumed = "; ".join(f"{a['what']}: {a['value']:,.0f}" for a in priced[0]["assumptions"])
    return (
        f"{markdown(['recipe', 'expected top-1', *(f'{gpu}-hours' for gpu in MAIN_GPUS)], rows, 2)}\n\n"
        "Modelled, not measured; eight GPUs. In brackets: at the roofline, and at the slowest published training of a ViT on "
        f"that GPU. {' '.join(sources)} Assumed on {priced[0]['gpu']}: {assumed}."
    )


def recipes(only: Sequence[str] = ()) -> str:
    """The recipes of the paper's models, or some of them, with their cost on three GPUs, each model's dearest first."""
    found: dict[str, list[tuple[float, list[str]]]] = {family: [] for family in FAMILIES}
    for path in sorted((ROOT / "rcp").glob("[bfq]*_*.yaml")):
        family = max((f for f in FAMILIES if path.stem.partition("_")[2].startswith(f)), key=len)
        recipe = load_recipe(path)
        if only and recipe.name not in only:
            continue
        at = predict(recipe)
        top1 = "not run" if recipe.about.top1 is None else as_published(recipe.about.top1)
        cells = [f"`{recipe.name}`", top1, *(format_hours(at[gpu]) for gpu in MAIN_GPUS)]
        found[family].append((at["V100"]["hours"], cells))
    rows = [cells for family in FAMILIES for _, cells in sorted(found[family], key=lambda row: -row[0])]
    ranges = "; ".join(f"{gpu} {_range(gpu)}" for gpu in MAIN_GPUS)
    return (
        f"{markdown(['recipe', 'expected top-1', *(f'{gpu}-hours' for gpu in MAIN_GPUS)], rows)}\n\nModelled on eight GPUs, "
        f"not measured: plan with these hours, {K:g} of the speed that FLOPs and memory traffic allow; from that bound to the "
        f"slowest published training of a ViT `final_b16` takes {ranges}. Where expected top-1 says 'not run', nobody has "
        "measured what smaller images or dropped patches cost."
    )


def _range(gpu: str) -> str:
    rows = {row["basis"]: row["hours"] for row in predict(load_recipe("final_b16"), [gpu])[gpu]["estimates"]}
    return f"{rows['roofline']:.0f} to {rows['published']:.0f} hours"


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
        f"{markdown(head, rows)}\n\nThe start of a validation pass, {REFERENCE.pass_start_seconds} s, is fitted to the "
        "B/16 log, so B/16 agrees by construction. L/14 is the test: only the MFU is taken from its log."
    )


def cost_published(_: Results) -> str:
    """The k that each published training would give."""
    rows = []
    for run in PUBLISHED_RUNS:
        k = implied_k(run)
        rows.append(
            [
                f"{run.name}, {run.source}",
                run.gpu,
                f"{run.mfu:.1%}",
                f"{run.mfu / k:.1%}",
                f"{k:.2f}",
                run.remark,
            ]
        )
    head = ["published training", "GPU", "its MFU", "our roofline for its model", "k", "differs from ours in"]
    peaks = ", ".join(
        f"{gpu} {GPUS[gpu].peak_flops / 1e12:g}" for gpu in dict.fromkeys(r.gpu for r in PUBLISHED_RUNS)
    )
    return f"{markdown(head, rows, 2)}\n\nMFU is of the dense peaks, in TFLOP/s: {peaks}."


# models


OWN = ("b16", "b16_384", "l14", "l14_336")  # suffixes of the paper's recipes
TIMM_SIZE = 224
TIMM_MODELS = (
    "vit_base_patch16_224.mae", "vit_small_patch14_dinov2", "vit_base_patch14_dinov2", "vit_large_patch14_dinov2",
    "vit_small_patch16_dinov3", "vit_base_patch16_dinov3", "vit_large_patch16_dinov3",
    "vit_base_patch16_siglip_224.v2_webli", "eva02_small_patch14_336", "eva02_base_patch16_clip_224",
    "vit_pe_core_base_patch16_224", "vit_pe_core_large_patch14_336", "convnext_tiny", "convnext_base",
    "swin_tiny_patch4_window7_224", "swin_base_patch4_window7_224",
)  # fmt: skip


def model_costs(_: Results) -> str:
    """A row per model: size, work, GPU-hours of the final and the frugal recipe, weights."""
    head = ["model", "px", "M parameters", "GFLOP per image"]
    head += [f"{gpu}-hours, `final` / `frugal`" for gpu in MAIN_GPUS]
    rows = [*_own_rows(), *map(_timm_row, TIMM_MODELS)]
    return (
        f"{markdown([*head, 'pretrained weights'], rows)}\n\nImageNet-1k, modelled on eight GPUs at {K:g} of the roofline's "
        "speed; - cannot be counted: the step with half-precision weights does not run. FLOPs are of a forward pass. "
        "timm's models have the epochs of B/16 or, from the size of L/14 on, of L/14; nobody has measured the accuracy that they "
        "reach with these recipes."
    )


@cache
def _own_rows() -> list[list[str]]:
    rows = []
    for suffix in OWN:
        recipes = [load_recipe(f"{kind}_{suffix}") for kind in ("final", "frugal")]
        model = recipes[0].model
        rows.append(_cost_row(model.arch, f"open_clip, `{model.weights}`", recipes))
    return rows


@cache
def _timm_row(name: str) -> list[str]:
    options = [f"--model.arch={TIMM}{name}", "--model.weights=timm", f"--model.image_size={TIMM_SIZE}"]
    suffix = "l14" if paper_recipe(load_recipe("final_b16", options)) is LARGE else "b16"
    recipes = [load_recipe(f"{kind}_{suffix}", options) for kind in ("final", "frugal")]
    found = pretrained_cfg(name)
    licence = f", {found.license}" if found.license else ""
    return _cost_row(f"{TIMM}{name}", f"timm, `{found.tag}`{licence}", recipes)


def _cost_row(name: str, weights: str, recipes: list[Recipe]) -> list[str]:
    recipe = recipes[0]
    arch, classes = load_arch(recipe.model.arch).at(recipe.model.image_size), recipe.data.num_classes
    final, frugal = (predict(r) for r in recipes)
    hours = (f"{format_hours(final[gpu])} / {format_hours(frugal[gpu])}" for gpu in MAIN_GPUS)
    size = f"{count_parameters(arch, classes) / 1e6:.0f}", f"{count_flops(arch, classes).forward / 1e9:.1f}"
    return [f"`{name}`", str(arch.image_size), *size, *hours, weights]


TABLES: dict[str, Callable[[Results], str]] = {
    "summary": summary,
    "demo": demo,
    "cost": cost,
    "cost-check": cost_check,
    "recipes": lambda _: recipes(),
    "readme-cost": lambda _: recipes(README_RECIPES),
    "cost-published": cost_published,
    "machine": machine,
    "decode": comparison("decode", "Crop decode"),
    "recipe": comparison("augment", "Whole recipe"),
    "resize": comparison("augment", "Bicubic resize"),
    "ops": ops,
    "loader-core": comparison(
        "loader", "Loader, whole recipe, per core", "Loader, crop and flip, per core", "Loader, evaluation, per core"
    ),
    "loader-threads": comparison("loader", "Loader, whole recipe", "Loader, crop and flip"),
    "loader-sizes": comparison("loader", "Loader, whole recipe, by size"),
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
    "words": words,
    "models": model_costs,
    "study-savings": study.savings,
    "study-steps": study.steps,
    "study-rows": study.every_row,
}  # fmt: skip


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
BAR_LEFT, BAR_WIDTH, BAR, BAR_ROW, FASTEST = (
    96,
    360,
    15,
    21,
    2000,
)  # pixels, and images/s of a bar of BAR_WIDTH


def speed(results: Results, theme: str) -> str:
    """The README's picture: images per second of one core."""
    parts, y = [], 0
    for title, name, files, shown in BARS:
        found = next(
            m for m in results.measures("augment", name) + results.measures("loader", name)
            if files in m["setting"].values()
        )  # fmt: skip
        parts.append(_label(BAR_LEFT, y + 15, title, "start"))
        y += 22
        for label, who in shown.items():
            rate = contender(found, who)["median"]
            width = BAR_WIDTH * rate / FASTEST
            style = "accent" if who == "fastft" else ""
            parts += [
                Markup('<rect class="bar {}" x="{}" y="{}" width="{:.1f}" height="{}"/>').format(
                    style, BAR_LEFT, y, width, BAR
                ),
                _label(BAR_LEFT - 8, y + 12, label, "end"),
                _label(BAR_LEFT + width + 6, y + 12, f"{rate:,.0f}", "start"),
            ]
            y += BAR_ROW
        y += 8
    parts.append(_label(BAR_LEFT, y + 12, "images per second of one core", "start"))
    return svg_file(parts, BAR_LEFT + BAR_WIDTH + 64, y + 20, theme)


def _label(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


PICTURES: dict[str, Callable[[Results, str], str]] = {
    "speed": speed,
    "study": lambda _, theme: render_file([study.front_chart()], theme),
}


def filled(text: str, results: Results) -> str:
    """The page with every table made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]](results)}\n{found[3]}", text)


def traced_traffic() -> str:
    """The content of fastft/cost/traffic.json, which saves `recipes`, `explain` and `cost` from tracing fastft's own recipes."""
    traced = {}
    for recipe in map(load_recipe, recipe_names()):
        for phase, path in product(find_phases(recipe), KERNELS):
            of_phase = with_phase(recipe, phase)
            key = traffic_key(of_phase, path)
            if key not in traced:
                found = trace_image(of_phase, path)
                traced[key] = None if found is None else astuple(found)
    lines = (f" {json.dumps(key)}: {json.dumps(traced[key])}" for key in sorted(traced))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 where a table is out of date"
    )
    check = parser.parse_args().check
    results = Results(RESULTS)
    new = {TRAFFIC: traced_traffic()}
    if not check:
        TRAFFIC.write_text(new[TRAFFIC], encoding="utf-8")  # the tables' costs are read from it
    new |= {page: filled(page.read_text(encoding="utf-8"), results) for page in PAGES}
    for name, draw in PICTURES.items():
        new |= {IMAGES / f"{name}-{theme}.svg": draw(results, theme) for theme in ("light", "dark")}
    stale = [
        path for path, text in new.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if check and stale:
        sys.exit(f"out of date: {', '.join(p.name for p in stale)}; run: python benchmarks/tables.py")
    for path in stale:
        path.write_text(new[path], encoding="utf-8")


if __name__ == "__main__":
    main()
