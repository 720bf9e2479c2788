"""The tables of modelled costs, made by tables.py, and the traced traffic that they read."""

import json
from collections.abc import Sequence
from dataclasses import astuple
from functools import cache
from itertools import product
from typing import Any

from beton_tools.base.console import markdown_table as markdown
from fastft.cost.price import MACHINE_GPUS, CostQuery, Overheads, estimate, format_hours, predict, price_recipes
from fastft.cost.published import PUBLISHED_RUNS, PublishedRun
from fastft.cost.roofline import K, Mfu, roofline_mfu
from fastft.cost.traffic import KERNELS, trace_image, traffic_key
from fastft.machine.gpus import GPUS, MAIN_GPUS
from fastft.model import count_flops, load_arch
from fastft.model.recipe_model import find_phases, with_phase
from fastft.model.timm_arch import pretrained_cfg
from fastft.recipe import Recipe, load_recipe
from fastft.recipe.automatic import LARGE, paper_recipe
from fastft.recipe.constants import TIMM
from fastft.recipe.recipe_file import RECIPES, recipe_names
from fastft.search.sweep import as_published

# A100-hours of the paper's logs: 8 x 6:01:54 and 8 x 13:12:11 of wall time
LOGS = {"final_b16": ("B/16", 48.3), "final_l14": ("L/14", 105.6)}
# The start of a pass over the validation images in the paper's own runs, with new worker processes for raw and EMA model each.
# Fitted to the B/16 log: (21,714 s of wall time - 50 x 625 x 0.6032 s of steps) / 50 / 2 passes - 4.9 s of forward. The same
# figure gives 5 % less than the log of the L/14 run, which also wrote a 5 GB checkpoint every epoch.
PASS_START_SECONDS = 23.7
REFERENCE = Overheads(float("inf"), float("inf"), pass_start_seconds=2 * PASS_START_SECONDS, start_seconds=0.0)
README_RECIPES = ("final_b16", "frugal_b16", "frugal_b16_half", "quick_b16_half", "final_l14")
COST_RECIPES = ("final_b16", "frugal_b16", "frugal_b16_half")
FAMILIES = ("b16", "b16_384", "l14", "l14_336")  # models; a recipe is named KIND_MODEL or KIND_MODEL_LEVER


def cost(_: Any) -> str:
    """Expected hours of the B/16 recipes on each main GPU, with the range from the roofline to the slowest published run."""
    recipes = [load_recipe(RECIPES / f"{name}.yaml") for name in COST_RECIPES]
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
        sources.append(f"MFU of `{recipes[0].name}` on {card['gpu']} ({card['peak_flops'] / 1e12:g} TFLOP/s): {shown}.")
    assumed = "; ".join(f"{a['what']}: {a['value']:,.0f}" for a in priced[0]["assumptions"])
    return (
        f"{markdown(['recipe', 'expected top-1', *(f'{gpu}-hours' for gpu in MAIN_GPUS)], rows, 2)}\n\n"
        "Modelled, not measured; eight GPUs. In brackets: at the roofline, and at the slowest published training of a ViT on "
        f"that GPU. {' '.join(sources)} Assumed on {priced[0]['gpu']}: {assumed}."
    )


def recipes(only: Sequence[str] = ()) -> str:
    """The recipes of the paper's models, or some of them, with their cost on three GPUs, each model's dearest first."""
    found: dict[str, list[tuple[float, list[str]]]] = {family: [] for family in FAMILIES}
    for path in sorted((RECIPES).glob("[bfq]*_*.yaml")):
        family = max((f for f in FAMILIES if path.stem.partition("_")[2].startswith(f)), key=len)
        recipe = load_recipe(path)
        if only and recipe.name not in only:
            continue
        at = predict(recipe)
        top1 = "not run" if recipe.about.top1 is None else as_published(recipe.about.top1)
        of = recipe.about.source or "" if recipe.about.top1 else ""
        of = f"best epoch of one log, {of}" if of.startswith("paper") else of  # final_*: as the paper reports
        cells = [f"`{recipe.name}`", top1, of, *(format_hours(at[gpu]) for gpu in MAIN_GPUS)]
        found[family].append((at["V100"]["hours"], cells))
    rows = [cells for family in FAMILIES for _, cells in sorted(found[family], key=lambda row: -row[0])]
    ranges = "; ".join(f"{gpu} {_range(gpu)}" for gpu in MAIN_GPUS)
    header = ["recipe", "expected top-1", "source", *(f"{gpu}-hours" for gpu in MAIN_GPUS)]
    return (
        f"{markdown(header, rows)}\n\nModelled on eight GPUs, "
        f"not measured. Plan with these hours, which assume {K:g} of the speed that FLOPs and memory traffic allow. Hours of "
        f"`final_b16` from that limit to the slowest published training of a ViT: {ranges}. 'not run': nobody has measured the "
        "accuracy."
    )


def _range(gpu: str) -> str:
    rows = {row["basis"]: row["hours"] for row in predict(load_recipe("final_b16"), [gpu])[gpu]["estimates"]}
    return f"{rows['roofline']:.0f} to {rows['published']:.0f} hours"


def cost_check(_: Any) -> str:
    """The cost model compared with the logs of the paper's own runs."""
    rows = []
    for name, (title, logged) in LOGS.items():
        recipe = load_recipe(RECIPES / f"{name}.yaml")
        run = next(run for run in PUBLISHED_RUNS if run.name == f"this paper's {title}")
        hours = estimate(recipe, GPUS["A100"], MACHINE_GPUS, Mfu(run.mfu, "published", ""), REFERENCE).gpu_hours
        rows.append([title, f"{run.mfu:.1%}", f"{hours:.1f}", f"{logged}"])
    head = ["the paper's own run", "MFU, from its log", "A100-hours, modelled", "A100-hours, from its log"]
    return (
        f"{markdown(head, rows)}\n\nThe start of a validation pass, {PASS_START_SECONDS} s, is fitted to the "
        "B/16 log, so B/16 agrees by construction. L/14 is the test: only the MFU is taken from its log."
    )


def implied_k(run: PublishedRun) -> float:
    """The k that a published training gives: its MFU over the roofline of its model on its GPU."""
    options = [f"--model.arch={run.arch}", f"--model.image_size={run.image_size}", "--model.freeze_conv1=false"]
    roofline = roofline_mfu(load_recipe("final_b16", options), GPUS[run.gpu], 8)
    assert roofline is not None
    return run.mfu / roofline.value


def cost_published(_: Any) -> str:
    """The k that each published training would give."""
    rows = []
    for run in PUBLISHED_RUNS:
        k = implied_k(run)
        rows.append(
            [f"{run.name}, {run.source}", run.gpu, f"{run.mfu:.1%}", f"{run.mfu / k:.1%}", f"{k:.2f}", run.remark]
        )
    head = ["published training", "GPU", "its MFU", "our roofline for its model", "k", "differs from ours in"]
    peaks = ", ".join(f"{gpu} {GPUS[gpu].peak_flops / 1e12:g}" for gpu in dict.fromkeys(r.gpu for r in PUBLISHED_RUNS))
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
    size = f"{(arch.parameters + arch.width * classes) / 1e6:.0f}", f"{count_flops(arch, classes).forward / 1e9:.1f}"
    return [f"`{name}`", str(arch.image_size), *size, *hours, weights]


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
