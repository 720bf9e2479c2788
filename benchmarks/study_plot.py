"""The study's plots as SVG, for light and dark pages: accuracy against training FLOPs, and the cost of the ImageNet recipes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from scored_runs import shown_error

from fastft.cost.mfu import RECORD_MFU
from fastft.cost.model import MACHINE_GPUS, estimate, predict_published
from fastft.machine.gpus import GPUS
from fastft.recipe import load_recipe

RECIPES = (
    "final_b16", "frugal_b16", "quick_b16", "frugal_b16_half", "frugal_b16_progressive", "frugal_b16_sparse",
    "frugal_b16_progressive_half",
)  # fmt: skip
BELOW_FRONT = 3.0  # points


@dataclass(frozen=True)
class Colours:
    name: str
    text: str
    grid: str
    points: str
    front: str


THEMES = (
    Colours("light", "#1f2328", "#d1d9e0", "#6e7781", "#0969da"),
    Colours("dark", "#f0f6fc", "#3d444d", "#9198a1", "#4493f8"),
)


def write_plots(found: Mapping[str, Any], folder: Path) -> None:
    """Write `study-light.svg`, `study-recipes-light.svg` and their dark forms; the same figures give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"svg.hashsalt": "fastft", "svg.fonttype": "none", "font.size": 9})
    for colours in THEMES:
        for name, draw in (("study", draw_front), ("study-recipes", draw_recipes)):
            figure, axes = plt.subplots(figsize=(7.2, 4.0))
            draw(axes, found, colours)
            _paint(axes, colours)
            figure.tight_layout()
            path = folder / f"{name}-{colours.name}.svg"
            figure.savefig(path, transparent=True, metadata={"Date": None})
            plt.close(figure)


def draw_front(axes: Axes, found: Mapping[str, Any], colours: Colours) -> None:
    """Top-1 of every row against its training FLOPs; rows on the Pareto front are joined and numbered.

    Rows far below the front, such as a baseline with a wrong learning rate, are listed instead of drawn.
    """
    front = sorted((f for f in found["figures"] if f["name"] in found["pareto"]), key=lambda f: f["flops"])
    floor = min(f["top1"] for f in front) - BELOW_FRONT
    below = [f for f in found["figures"] if f["top1"] < floor]
    for row in (f for f in found["figures"] if f["top1"] >= floor):
        axes.errorbar(
            row["flops"] / 1e12,
            row["top1"],
            yerr=shown_error(row),
            fmt="o",
            color=colours.front if row in front else colours.points,
            markersize=5,
            elinewidth=1,
        )
    for number, row in enumerate(front, 1):
        above = number % 2 == 1
        axes.annotate(
            str(number),
            (row["flops"] / 1e12, row["top1"]),
            xytext=(-4, 5) if above else (5, -10),
            textcoords="offset points",
            ha="right" if above else "left",
            fontsize=8,
            color=colours.text,
        )
    axes.plot(
        [f["flops"] / 1e12 for f in front], [f["top1"] for f in front], color=colours.front, linewidth=1
    )
    key = [f"{number}: {row['name']}" for number, row in enumerate(front, 1)]
    key += [f"not drawn: {f['name']}, {f['flops'] / 1e12:.0f} TFLOP, {f['top1']:.1f} %" for f in below]
    axes.text(
        0.98, 0.03, "\n".join(key), transform=axes.transAxes, ha="right", multialignment="left", fontsize=7, color=colours.text
    )  # fmt: skip
    axes.margins(x=0.1, y=0.1)
    axes.set_xlabel("training TFLOP")
    axes.set_ylabel("top-1 % of the test images")
    axes.set_title(
        "CIFAR-10, ViT-S/14 at 56 px: accuracy against training FLOPs (line: Pareto front)", fontsize=9
    )


def draw_recipes(axes: Axes, found: Mapping[str, Any], colours: Colours) -> None:
    """V100-hours of the ImageNet recipes of B/16 at the MFU of a published ViT and at the record."""
    for place, name in enumerate(reversed(RECIPES)):
        recipe = load_recipe(name)
        hours = predict_published(recipe)["V100"]["hours"]
        record = estimate(recipe, GPUS["V100"], MACHINE_GPUS, RECORD_MFU["V100"]).gpu_hours
        top1 = recipe.about.top1
        axes.barh(place, hours, color=colours.points if top1 is None else colours.front, height=0.6)
        axes.plot([record, record], [place - 0.3, place + 0.3], color=colours.text, linewidth=2)
        words = f"{hours:.1f} h ({record:.1f} h); " + ("not run" if top1 is None else f"expected {top1:g} %")
        axes.annotate(words, (hours, place), xytext=(4, -3), textcoords="offset points", color=colours.text)
    axes.set_yticks(range(len(RECIPES)), reversed(RECIPES))
    axes.set_xlim(0, 135)
    axes.set_xlabel("V100-hours, modelled: bar at 21 % MFU (published ViT), mark at 52 % (record)")
    axes.set_title("ImageNet recipes of CLIP ViT-B/16 at 224 px", fontsize=9)


def _paint(axes: Axes, colours: Colours) -> None:
    axes.grid(color=colours.grid, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(colors=colours.text, which="both")
    for label in (axes.title, axes.xaxis.label, axes.yaxis.label):
        label.set_color(colours.text)
    for spine in axes.spines.values():
        spine.set_color(colours.grid)
