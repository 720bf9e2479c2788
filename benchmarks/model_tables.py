"""Tables of models for `tables.py`: what a model costs with the paper's recipe, and timm's models that were trained here."""

import json
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from markdown_table import markdown

from fastft.cost.mfu import PUBLISHED_MFU
from fastft.cost.model import predict_published
from fastft.cost.work import count_parameters
from fastft.model import count_flops, load_arch
from fastft.model.timm_arch import pretrained_cfg
from fastft.recipe import Recipe, load_recipe
from fastft.recipe.automatic import LARGE, paper_recipe
from fastft.recipe.constants import TIMM as TIMM_PREFIX

TOWERS = Path(__file__).parent / "results" / "towers.json"
OWN = ("b16", "b16_384", "l14", "l14_336")  # suffixes of the paper's recipes
TIMM_SIZE = 224
TIMM = (
    "vit_base_patch16_224.mae", "vit_small_patch14_dinov2", "vit_base_patch14_dinov2", "vit_large_patch14_dinov2",
    "vit_small_patch16_dinov3", "vit_base_patch16_dinov3", "vit_large_patch16_dinov3",
    "vit_base_patch16_siglip_224.v2_webli", "eva02_small_patch14_336", "eva02_base_patch16_clip_224",
    "vit_pe_core_base_patch16_224", "vit_pe_core_large_patch14_336", "convnext_tiny", "convnext_base",
    "swin_tiny_patch4_window7_224", "swin_base_patch4_window7_224",
)  # fmt: skip
README = (
    "vit_base_patch14_dinov2", "vit_base_patch16_dinov3", "vit_base_patch16_siglip_224.v2_webli",
    "vit_pe_core_base_patch16_224", "eva02_small_patch14_336", "convnext_tiny", "swin_tiny_patch4_window7_224",
)  # fmt: skip


def model_costs(only: Collection[str] | None = None) -> str:
    """A row per model: size, work, GPU-hours of the final and the frugal recipe, weights. only: of these timm models."""
    head = ["model", "px", "M parameters", "GFLOP per image"]
    head += [f"{gpu}-hours, `final` / `frugal`" for gpu in PUBLISHED_MFU]
    rows = [*_own_rows(), *map(_timm_row, TIMM if only is None else only)]
    shares = ", ".join(f"{mfu.value:.1%} on {gpu}" for gpu, mfu in PUBLISHED_MFU.items())
    return (
        f"{markdown([*head, 'pretrained weights'], rows, 1)}\n\nImageNet-1k, modelled on eight GPUs at the MFU published for a "
        f"ViT ({shares}); * the loader is the bottleneck, with the cores of a usual cloud machine. FLOPs are of a forward pass. "
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
    options = [f"--model.arch={TIMM_PREFIX}{name}", "--model.weights=timm", f"--model.image_size={TIMM_SIZE}"]
    suffix = "l14" if paper_recipe(load_recipe("final_b16", options)) is LARGE else "b16"
    recipes = [load_recipe(f"{kind}_{suffix}", options) for kind in ("final", "frugal")]
    found = pretrained_cfg(name)
    licence = f", {found.license}" if found.license else ""
    return _cost_row(f"{TIMM_PREFIX}{name}", f"timm, `{found.tag}`{licence}", recipes)


def _cost_row(name: str, weights: str, recipes: list[Recipe]) -> list[str]:
    recipe = recipes[0]
    arch, classes = load_arch(recipe.model.arch).at(recipe.model.image_size), recipe.data.num_classes
    final, frugal = (predict_published(r) for r in recipes)
    return [
        f"`{name}`",
        str(arch.image_size),
        f"{count_parameters(arch, classes) / 1e6:.0f}",
        f"{count_flops(arch, classes).forward / 1e9:.1f}",
        *(f"{shown_hours(final[gpu])} / {shown_hours(frugal[gpu])}" for gpu in PUBLISHED_MFU),
        weights,
    ]


def shown_hours(cost: dict[str, Any]) -> str:
    return f"{cost['hours']:.1f}{'*' if cost['limited_by'] == 'loader' else ''}"


def trained_towers() -> str:
    """A row per model that `benchmarks/towers.py` trained."""
    result: dict[str, Any] = json.loads(TOWERS.read_text(encoding="utf-8"))
    head = [
        "model", "px", "M parameters", "GFLOP per image", "loss, first step", "loss, last 5 steps", "resumed run",
        "logits of the export in timm",
    ]  # fmt: skip
    rows = [
        [
            f"`{row['name']}`", str(row["image_size"]), f"{row['parameters'] / 1e6:.1f}", f"{row['forward_flops'] / 1e9:.2f}",
            f"{row['loss_first']:.3f}", f"{row['loss_last']:.3f}", "equal" if row["resume_equal"] else "differs",
            "equal" if row["export_difference"] == 0 else f"differ by {row['export_difference']:.1e} of the largest",
        ]
        for row in result["towers"]
    ]  # fmt: skip
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"{markdown(head, rows, 1)}\n\n20 steps of 8 crops of four photographs from random weights, fp32 on a CPU "
        f"(`benchmarks/towers.py`, {versions}, {result['date']}). Equal means bit for bit."
    )
