"""The tables of modelled costs, made by tables.py, and the traced traffic that they read."""

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
from fastft.cost.explanation import NOT_RUN, list_recipes
from fastft.cost.price import MACHINE_GPUS, estimate, format_hours, predict
from fastft.cost.roofline import K_RANGE, K, Mfu, roofline_mfu
from fastft.cost.traffic import KERNELS, trace_image, traffic_key
from fastft.jobs.sweep import as_published
from fastft.machine.gpus import GPUS, MAIN_GPUS
from fastft.model import count_flops, load_arch
from fastft.model.timm_arch import pretrained_cfg
from fastft.recipe import Recipe, load_recipe
from fastft.recipe.constants import TIMM
from fastft.recipe.paper import LARGE, paper_recipe
from fastft.recipe.recipe_file import TABLES, recipe_names
from fastft.recipe.tables import load_sweep

README_RECIPES = ("final_b16", "frugal_b16_half", "quick_b16_half", "brief_b16_half", "final_l14", "frugal_l14_half")
PAPER_ROWS = {"baseline_b16": "baseline", "final_b16": "no mixup or CutMix", "final_b16_384": "resolution 384"}
PUBLISHED = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text(encoding="utf-8"))
VAL_IMAGES = 50_000  # that an expected accuracy was measured on
EXTRAPOLATED = 0.1  # points by which a loss that was measured elsewhere may be wrong, beside the images' error: assumed


@dataclass(frozen=True)
class PublishedRun:
    """A row of published.yaml."""

    gpu: str
    name: str
    mfu: float
    arch: str
    source: str
    image_size: int = 224
    remark: str = ""


def published(kind: str) -> list[PublishedRun]:
    """Trainings on V100 whose authors had tuned the step ('tuned'), or the 'others'."""
    return [PublishedRun(**row) for row in PUBLISHED[kind]]


def _with_spread(recipe: Recipe, gpu: str) -> str:
    """Expected hours, and those at the ends of K's range."""
    expected = predict(recipe, [gpu])[gpu]
    share = {k: k * expected["mfu"] / K for k in K_RANGE}
    slow, fast = (estimate(recipe, GPUS[gpu], MACHINE_GPUS, Mfu(mfu, "", "")).gpu_hours for mfu in share.values())
    return f"{format_hours(expected)} ({fast:.0f}-{slow:.0f})"


def recipes(only: Sequence[str] = ()) -> str:
    """The recipes for ImageNet that have an expected accuracy, or some of them, the cheapest first."""
    rows = []
    for priced in _by_hours():
        recipe = load_recipe(priced["name"])
        if priced["expected_top1"] is None or (only and recipe.name not in only):
            continue
        source = str(recipe.about.source)
        source = f"best epoch of one log, {source}" if source.startswith("paper") else source
        top1 = f"{priced['expected_top1']:.1f} ± {_error(recipe):.2f}"
        paper_hours = PUBLISHED["paper_hours"].get(PAPER_ROWS.get(recipe.name), "")
        rows.append([f"`{recipe.name}`", source, top1, *_hours(recipe), f"{paper_hours:.1f}" if paper_hours else ""])
    gpus = [f"{gpu}-hours" for gpu in MAIN_GPUS]
    head = ["recipe", "source of the top-1", "expected top-1", *gpus, "the paper's own V100-hours"]
    low, high = K_RANGE
    own = _with_spread(load_recipe("final_b16"), "V100")
    return (
        f"{markdown(head, rows, 2)}\n\nHours are modelled on eight GPUs, not measured: at {K:g} of the speed that FLOPs and "
        f"memory traffic allow, the mean of tuned trainings on V100. These reached {low:g} to {high:g}: `final_b16` in {own} "
        f"V100-hours. ±: the standard error of one training on {VAL_IMAGES:,} images; of an extrapolated figure also "
        f"{EXTRAPOLATED:g} points, an assumption, for the loss that is taken over."
    )


def not_run(_: Any) -> str:
    """The recipes for ImageNet whose accuracy nobody has measured."""
    recipes = [load_recipe(r["name"]) for r in _by_hours() if r["group"] == NOT_RUN]
    rows = [[f"`{recipe.name}`", *_hours(recipe)] for recipe in recipes]
    return markdown(["recipe", *(f"{gpu}-hours" for gpu in MAIN_GPUS)], rows)


def starts(_: Any) -> str:
    """timm's figures of other starts of B/16, and what the paper's schedule costs from them."""
    sweep, rows = load_sweep(TABLES / "starts.yaml"), []
    for label in sweep.labels:
        of_start = [row for row in sweep.rows if row.label == label]
        recipes = [load_recipe(sweep.reference(row)) for row in of_start]
        hours = " / ".join(format_hours(predict(recipe, ["V100"])["V100"]) for recipe in recipes)
        rows.append([label, f"`{recipes[0].model.weights}`", as_published(of_start[0].paper), hours])
    head = ["start", "`model.weights`", "timm's top-1", f"V100-hours, {' / '.join(sweep.series)}"]
    return f"{markdown(head, rows, 2)}\n\nTop-1: {sweep.source}. Nobody has run the paper's schedule from these starts."


@cache
def _by_hours() -> list[dict[str, Any]]:
    priced = [r for r in list_recipes(timm=True)["recipes"] if r["gpu_hours"]["V100"]]
    return sorted(priced, key=lambda r: r["gpu_hours"]["V100"])


def _hours(recipe: Recipe) -> list[str]:
    at = predict(recipe)
    return [format_hours(at[gpu]) for gpu in MAIN_GPUS]


def _error(recipe: Recipe) -> float:
    """Standard error of the expected accuracy in points."""
    wrong = 100 - float(recipe.about.top1 or 0)
    images = ((100 - wrong) * wrong / VAL_IMAGES) ** 0.5
    return math.hypot(images, EXTRAPOLATED * str(recipe.about.source).startswith("extrapolated"))


def implied_k(run: PublishedRun) -> float:
    """The k that a published training gives: its MFU over the roofline of its model on its GPU."""
    options = [f"arch={run.arch}", f"image_size={run.image_size}", "freeze_conv1=false", "weights=random"]
    recipe = load_recipe("final_b16", [f"--model.{option}" for option in options])
    roofline = roofline_mfu(recipe, GPUS[run.gpu], MACHINE_GPUS)
    assert roofline is not None
    return run.mfu / roofline.value


def cost_published(_: Any) -> str:
    """The k that each published training would give."""
    rows, tuned = [], published("tuned")
    for run in (*tuned, *published("others")):
        k = implied_k(run)
        rows.append(
            [f"{run.name}, {run.source}", run.gpu, f"{run.mfu:.1%}", f"{run.mfu / k:.1%}", f"{k:.2f}", run.remark]
        )
    head = ["published training", "GPU", "its MFU", "our roofline for its model", "k", "differs from ours in"]
    peaks = ", ".join(f"{gpu} {GPUS[gpu].peak_flops / 1e12:g}" for gpu in MAIN_GPUS)
    mean = geometric_mean(map(implied_k, tuned))
    return (
        f"{markdown(head, rows, 2)}\n\nMFU is of the dense peaks, in TFLOP/s: {peaks}. The first {len(tuned)} are "
        f"trainings on V100 whose authors had tuned the step; the geometric mean of their k is {mean:.2f}."
    )


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
    """A row per model: size, work, GPU-hours of the final and the frugal recipe, weights."""
    head = ["model", "px", "M parameters", "GFLOP per image"]
    head += [f"{gpu}-hours, `final` / `frugal`" for gpu in MAIN_GPUS]
    rows = [*_own_rows(), *map(_timm_row, TIMM_MODELS)]
    return (
        f"{markdown([*head, 'pretrained weights'], rows)}\n\nImageNet-1k, modelled on eight GPUs at {K:g} of the roofline's "
        "speed. FLOPs are of a forward pass. "
        "timm's models have the epochs of B/16 or, from the size of L/14 on, of L/14; nobody has measured the accuracy that they "
        "reach with these recipes."
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


def _cost_row(name: str, weights: str, recipes: list[Recipe]) -> list[str]:
    recipe = recipes[0]
    arch, classes = load_arch(recipe.model.arch).at(recipe.model.image_size), recipe.data.num_classes
    final, frugal = (predict(r) for r in recipes)
    hours = (f"{format_hours(final[gpu])} / {format_hours(frugal[gpu])}" for gpu in MAIN_GPUS)
    size = f"{(arch.parameters + arch.width * classes) / 1e6:.0f}", f"{count_flops(arch, classes).forward / 1e9:.1f}"
    return [f"`{name}`", str(arch.image_size), *size, *hours, weights]


def traced_traffic() -> str:
    """The content of fastft/cost/traffic.json, which saves `recipes`, `explain` and `cost` from tracing fastft's own recipes."""
    traced = {}
    for recipe, path in product(map(load_recipe, recipe_names()), KERNELS):
        key = traffic_key(recipe, path)
        if key not in traced:
            image = trace_image(recipe, path)
            traced[key] = None if image is None else astuple(image)
    lines = (f" {json.dumps(key)}: {json.dumps(traced[key])}" for key in sorted(traced))
    return "{\n" + ",\n".join(lines) + "\n}\n"
