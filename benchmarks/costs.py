"""The tables with modelled costs, which tables.py makes, and the traced traffic that they read."""

import json
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import yaml

from beton_tools.base.console import markdown_table as markdown
from fastft.cost.explanation import NOT_RUN, ListedRecipe, list_recipes
from fastft.cost.price import MACHINE_GPUS, estimate, format_hours, format_range, predict, with_cores
from fastft.cost.roofline import ATTENTION_SHARE, FAMILIES, VITS, Family, Mfu, mfu_range, roofline_mfu
from fastft.cost.traffic import KERNELS, trace_image, traffic_key
from fastft.cost.work import recipe_flops
from fastft.jobs.sweep import as_published
from fastft.machine.gpus import GPUS, MAIN_GPUS
from fastft.model import count_flops, load_arch
from fastft.model.recipe_model import recipe_arch
from fastft.model.timm_arch import pretrained_cfg
from fastft.recipe import Recipe, load_recipe
from fastft.recipe.constants import TIMM
from fastft.recipe.paper import LARGE, paper_recipe
from fastft.recipe.recipe_file import TABLES, recipe_names
from fastft.recipe.tables import load_sweep

README_RECIPES = ("probe_dinov2_b14", "brief_b16_half", "final_b16", "final_l14")
PAPER_ROWS = {"baseline_b16": "baseline", "final_b16": "no mixup or CutMix", "final_b16_384": "resolution 384"}
PUBLISHED = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class PublishedRun:
    """A row in published.yaml. It has either mfu or images_per_second."""

    gpu: str
    name: str
    arch: str
    source: str
    mfu: float | None = None
    images_per_second: float | None = None
    image_size: int = 224
    remark: str = ""

    @property
    def recipe(self) -> Recipe:
        options = [f"arch={self.arch}", f"image_size={self.image_size}", "freeze_conv1=false", "weights=random"]
        return load_recipe("final_b16", [f"--model.{option}" for option in options])

    @property
    def model_mfu(self) -> float:
        if self.mfu is not None:
            return self.mfu
        flops = recipe_flops(self.recipe, recipe_arch(self.recipe)).train
        return (self.images_per_second or 0.0) * flops / GPUS[self.gpu].peak_flops

    @property
    def k(self) -> float:
        """The run's MFU, divided by its model's roofline on its GPU."""
        roofline = roofline_mfu(self.recipe, GPUS[self.gpu], MACHINE_GPUS)
        assert roofline is not None
        return self.model_mfu / roofline.value


def published(kind: str) -> list[PublishedRun]:
    """Return the runs in a family from fastft/cost/roofline.py ('tuned', 'vits'), or the 'others'."""
    return [PublishedRun(**row) for row in PUBLISHED[kind]]


def spread(recipe: Recipe, name: str, family: Family) -> str:
    """Return the GPU-hours for the fastest and the slowest run in one family."""
    gpu = GPUS[name]
    roofline = roofline_mfu(recipe, gpu, MACHINE_GPUS)
    assert roofline is not None
    ends = (estimate(recipe, gpu, MACHINE_GPUS, mfu, with_cores(gpu.cores)) for mfu in mfu_range(roofline, [family]))
    return format_range(*(end.gpu_hours for end in ends))


def recipes(_: Any) -> str:
    """Tabulate recipes with an expected top-1 or a published head for their tower, cheapest first."""
    rows = []
    for priced in _by_hours():
        recipe = load_recipe(priced.name)
        if recipe.name in PUBLISHED["heads"]:
            rows.append(_head_row(recipe))
        if priced.expected_top1 is None:
            continue
        source = str(recipe.about.source)
        source = f"best epoch of one log, {source}" if source.startswith("paper") else source
        paper_hours = PUBLISHED["paper_hours"].get(PAPER_ROWS.get(recipe.name), "")
        rows.append([f"`{recipe.name}`", source, f"{priced.expected_top1:.1f}", *_spreads(recipe),
                     f"{paper_hours:.1f}" if paper_hours else ""])  # fmt: skip
        if recipe.name == BETTER_START[0]:
            rows.append(_better_start())
    return f"{markdown(RECIPE_HEAD, rows, 2)}\n\n{sentence()}"


def readme(_: Any) -> str:
    """Tabulate four recipes for the README."""
    rows = []
    for priced in _by_hours():
        if priced.name not in README_RECIPES:
            continue
        recipe, top1 = load_recipe(priced.name), str(priced.expected_top1)
        if recipe.name in PUBLISHED["heads"]:
            theirs = PUBLISHED["heads"][recipe.name]
            top1 = f"{theirs['top1']}, others' linear probe on this tower"
        elif str(recipe.about.source).startswith("paper"):
            top1 += ", the authors' result"
        else:
            top1 += ", extrapolated from the authors' log"
        rows.append([f"`{recipe.name}`", top1, *_hours(recipe, ("V100", "H100"))])
    own = PUBLISHED["paper_hours"][PAPER_ROWS["final_b16"]]
    return (
        f"{markdown(['recipe', 'ImageNet top-1 %', 'V100-hours', 'H100-hours'], rows, 2)}\n\nHours are modelled. "
        "Nobody has measured them on a GPU yet. Their ranges assume steps as efficient as in the fastest and the slowest of the "
        f"[published trainings](docs/measurements/published.md) that we compared. The paper's own B/16 took {own} V100-hours."
    )


RECIPE_HEAD = [
    "recipe", "source of the top-1", "expected top-1", "V100-hours, as fast as tuned language models",
    "V100-hours, as fast as published ViTs", "A100-hours", "H100-hours", "the paper's own V100-hours",
]  # fmt: skip
BETTER_START = (
    "frugal_b16_half",
    "laion2b, 12k",
    "half frozen",
)  # the recipe before it, and its label and series in starts.yaml


def _spreads(recipe: Recipe) -> list[str]:
    """Return V100-hours by family, and for the other main GPUs hours from the fastest to the slowest run in both."""
    return [spread(recipe, MAIN_GPUS[0], family) for family in FAMILIES] + _hours(recipe, MAIN_GPUS[1:])


def _head_row(recipe: Recipe) -> list[str]:
    """Make the row for a recipe that stops at a linear probe.

    The accuracy is what others' heads on the same tower reach.
    """
    theirs, weights = PUBLISHED["heads"][recipe.name], pretrained_cfg(recipe.model.arch.removeprefix(TIMM))
    head = f"others' head on this frozen tower, trained {theirs['head']} ({theirs['source']})"
    source = f"not run; {head}; weights: {weights.license}"
    return [f"`{recipe.name}`", source, f"({theirs['top1']})", *_spreads(recipe), ""]


def _better_start() -> list[str]:
    """Make the row for a start that has seen ImageNet-12k. timm's result for it is for the whole schedule."""
    sweep, (_, label, series) = load_sweep(TABLES / "starts.yaml"), BETTER_START
    row = next(row for row in sweep.rows if (row.label, row.series) == (label, series))
    whole = next(row for row in sweep.rows if row.label == label and row.paper is not None)
    source = (
        "not run; timm's figure for these weights (laion2b, then ImageNet-12k), trained whole with its own schedule"
    )
    top1 = f"({as_published(whole.paper)})"
    return [f"`starts[{series}, {label}]`", source, top1, *_spreads(load_recipe(sweep.reference(row))), ""]


def sentence() -> str:
    """Explain the hours of `final_b16`, and what makes them differ from the paper's own."""
    final, gpu = load_recipe("final_b16"), MAIN_GPUS[0]
    paper = PUBLISHED["paper_hours"][PAPER_ROWS[final.name]]
    fastest, slowest = _hours(final, [gpu])[0].split("-")
    vits = spread(final, gpu, VITS).replace("-", " to ")
    stopped = load_recipe("brief_b16_half", ["--model.trainable_layers=none"])
    whole, unfrozen, brief = (
        predict(recipe, [gpu])[gpu].hours or math.nan for recipe in (final, stopped, load_recipe("brief_b16_half"))
    )
    return (
        "Hours are modelled and have not been measured. Each range goes from the fastest to the slowest of the [published "
        f"trainings](measurements/published.md). `final_b16` takes {fastest} to {slowest} "
        f"V100-hours on eight GPUs: about {whole:.0f} if the step is as fast as in tuned language-model trainings, and {vits} if "
        f"it is only as fast as in published ViT trainings. The paper's authors needed {paper}. `brief_b16_half` needs "
        f"{brief:.1f} hours at the first speed, {paper / brief:.1f} times less than the authors. Stopping early contributes a "
        f"factor of {whole / unfrozen:.1f}, freezing {unfrozen / brief:.1f}, and the "
        f"assumed speed {paper / whole:.1f}. An expected "
        "top-1 comes from one run. Four runs of MAE's B/16 scatter by 0.08 points (its FINETUNE.md), so a recipe with an "
        "expected 85.0 has about an even chance to reach 85.0 or more."
    )


def not_run(_: Any) -> str:
    """Tabulate the ImageNet recipes whose accuracy nobody has measured."""
    names = [r.name for r in _by_hours() if r.group == NOT_RUN and r.name not in PUBLISHED["heads"]]
    recipes = list(map(load_recipe, names))
    rows = [[f"`{recipe.name}`", *_hours(recipe)] for recipe in recipes]
    return markdown(["recipe", *(f"{gpu}-hours" for gpu in MAIN_GPUS)], rows)


def starts(_: Any) -> str:
    """Tabulate timm's results for other B/16 starts, and what the paper's schedule costs from them."""
    sweep, rows = load_sweep(TABLES / "starts.yaml"), []
    for label in sweep.labels:
        of_start = [row for row in sweep.rows if row.label == label]
        recipes = [load_recipe(sweep.reference(row)) for row in of_start]
        hours = " / ".join(format_hours(predict(recipe, ["V100"])["V100"]) for recipe in recipes)
        rows.append([label, f"`{recipes[0].model.weights}`", as_published(of_start[0].paper), hours])
    head = ["start", "`model.weights`", "timm's top-1", f"V100-hours, {' / '.join(sweep.series)}"]
    return f"{markdown(head, rows, 2)}\n\nTop-1: {sweep.source}. Nobody has run the paper's schedule from these starts."


@cache
def _by_hours() -> list[ListedRecipe]:
    priced = [(hours, r) for r in list_recipes().recipes if (hours := r.gpu_hours["V100"])]
    return [recipe for _, recipe in sorted(priced, key=lambda row: row[0])]


def _hours(recipe: Recipe, gpus: Sequence[str] = MAIN_GPUS) -> list[str]:
    """Return the GPU-hours by GPU, from the fastest to the slowest published training."""
    return [format_hours(predicted) for predicted in predict(recipe, gpus).values()]


def families(_: Any) -> str:
    """Explain the rows of `fastft cost`."""
    rows = [
        [
            f"`{f.basis}`",
            f"{f.k:g} of the roofline's: the mean of {f.what} on {f.gpus} ({f.slowest:g} to {f.fastest:g})",
        ]
        for f in FAMILIES
    ]
    fastest, slowest = (
        [f"`{end.basis}`", f"{end.value:g} of the roofline's: the {end.basis} training in `tuned` and `vits`"]
        for end in mfu_range(Mfu(1.0, "", ""))
    )
    roofline = (
        "the yardstick itself. Matrix products run at the rate that large products sustain, attention at "
        f"{ATTENTION_SHARE:.0%} of the peak, and all other memory traffic at the rate that streaming kernels sustain. Traffic is "
        "counted by tracing one step, operation by operation, as the trainer computes it on that GPU"
    )
    return markdown(["row", "speed of the step"], [fastest, *rows, slowest, ["`roofline`", roofline]], 2)


def cost_published(_: Any) -> str:
    """Tabulate the k of each published run."""
    parts = []
    for family in FAMILIES:
        ks = [run.k for run in published(family.basis)]
        mean = f"geometric mean {geometric_mean(ks):.2f}, {min(ks):.2f} to {max(ks):.2f}"
        parts.append(
            f"**{family.what[0].upper()}{family.what[1:]} on {family.gpus}**: k has the {mean}.\n\n{_runs(family.basis)}"
        )
    parts.append(f"**Others**, which belong to neither family:\n\n{_runs('others')}")
    peaks = ", ".join(f"{gpu} {GPUS[gpu].peak_flops / 1e12:g}" for gpu in (*MAIN_GPUS, "RTX3090"))
    parts.append(f"An MFU is of the dense peak, in TFLOP/s: {peaks}.")
    return "\n\n".join(parts)


def _runs(kind: str) -> str:
    rows = [
        [f"{r.name}, {r.source}", r.gpu, f"{r.model_mfu:.1%}", f"{r.model_mfu / r.k:.1%}", f"{r.k:.2f}", r.remark]
        for r in published(kind)
    ]
    head = [
        "training, what its source says",
        "GPU",
        "model MFU",
        "our roofline for its model",
        "k",
        "differs from ours in",
    ]
    return markdown(head, rows, 2)


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


def model_costs(_: Any) -> str:
    """Make a row per model: size, work, GPU-hours for the final and the frugal recipe, weights."""
    head = ["model", "px", "M parameters", "GFLOP per image"]
    head += [f"{gpu}-hours, `final` / `frugal`" for gpu in MAIN_GPUS]
    rows = [*_own_rows(), *map(_timm_row, TIMM_MODELS)]
    return (
        f"{markdown([*head, 'pretrained weights'], rows)}\n\nImageNet-1k on eight GPUs. Hours are modelled, from the fastest to "
        "the slowest of the [published trainings](measurements/published.md). FLOPs are those of a forward pass. timm's models "
        "have the epochs of B/16 or, from the size of L/14 on, of L/14. Nobody has measured the accuracy that they reach with "
        "these recipes."
    )


def _own_rows() -> list[list[str]]:
    rows = []
    for suffix in OWN:
        recipes = [load_recipe(f"{kind}_{suffix}") for kind in ("final", "frugal")]
        model = recipes[0].model
        rows.append(_cost_row(model.arch, f"open_clip, `{model.weights}`", recipes))
    return rows


def _timm_row(name: str) -> list[str]:
    options = [f"--model.arch={TIMM}{name}", "--model.weights=timm", f"--model.image_size={TIMM_SIZE}"]
    suffix = "l14" if paper_recipe(load_recipe("final_b16", options)) is LARGE else "b16"
    recipes = [load_recipe(f"{kind}_{suffix}", options) for kind in ("final", "frugal")]
    pretrained = pretrained_cfg(name)
    licence = f", {pretrained.license}" if pretrained.license else ""
    return _cost_row(f"{TIMM}{name}", f"timm, `{pretrained.tag}`{licence}", recipes)


def _cost_row(name: str, weights: str, recipes: Sequence[Recipe]) -> list[str]:
    recipe = recipes[0]
    arch, classes = load_arch(recipe.model.arch).at(recipe.model.image_size), recipe.data.num_classes
    final, frugal = (predict(r) for r in recipes)
    hours = (f"{format_hours(final[gpu])} / {format_hours(frugal[gpu])}" for gpu in MAIN_GPUS)
    size = f"{(arch.parameters + arch.width * classes) / 1e6:.0f}", f"{count_flops(arch, classes).forward / 1e9:.1f}"
    return [f"`{name}`", str(arch.image_size), *size, *hours, weights]


def traced_traffic() -> str:
    """Return the content of fastft/cost/traffic.json.

    With it, `recipes`, `explain` and `cost` need not trace fastft's own recipes.
    """
    traced = {}
    for recipe, path in product(map(load_recipe, recipe_names()), KERNELS):
        key = traffic_key(recipe, path)
        if key not in traced:
            image = trace_image(recipe, path)
            traced[key] = None if image is None else astuple(image)
    lines = (f" {json.dumps(key)}: {json.dumps(traced[key])}" for key in sorted(traced))
    return "{\n" + ",\n".join(lines) + "\n}\n"
