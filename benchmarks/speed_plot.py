"""The README's picture as SVG for light and dark pages: images per second of one core, from benchmarks/results/all.json.

Run: python benchmarks/speed_plot.py
"""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[1]
# title, name of the measure, files, contenders by their name in the results
PANELS = (
    (
        "decode, crop, RandAugment, erase: original ImageNet files",
        "Whole recipe",
        "as they are, lossless",
        {"fastft": "fastft", "timm": "timm", "DALI CPU": "DALI (CPU)", "torchvision v2": "torchvision"},
    ),
    (
        "decode, crop, flip: files of 500 px",
        "Loader, crop and flip, per core",
        "longest side 500, q90, 4:2:0",
        {"fastft": "fastft", "stock FFCV": "stock FFCV", "timm": "timm"},
    ),
)
# text, fastft, peer
THEMES = {"light": ("#1f2328", "#0969da", "#aeb6bf"), "dark": ("#f0f6fc", "#4493f8", "#656d76")}


def speeds(
    measures: list[dict[str, Any]], name: str, files: str, shown: dict[str, str]
) -> list[tuple[str, float]]:
    """(label, images per second of one core) of one measure's contenders."""
    found = next(m for m in measures if m["name"] == name and files in m["setting"].values())
    medians = {c["name"]: c["median"] for c in found["contenders"] if "median" in c}
    return [(label, medians[key]) for key, label in shown.items()]


def draw(measures: list[dict[str, Any]], path: Path, text: str, own: str, peer: str) -> None:
    panels = [(title, speeds(measures, name, files, shown)) for title, name, files, shown in PANELS]
    heights = [len(rows) for _, rows in panels]
    figure, axes = plt.subplots(len(panels), figsize=(7.2, 3.0), gridspec_kw={"height_ratios": heights})
    for ax, (title, rows) in zip(axes, panels, strict=True):
        labels, values = zip(*reversed(rows), strict=True)
        ax.barh(labels, values, color=[own if label == "fastft" else peer for label in labels], height=0.7)
        for place, value in enumerate(values):
            ax.annotate(f"{value:,.0f}", (value, place), (4, -3), textcoords="offset points", color=text)
        ax.set_title(title, fontsize=9, loc="left", color=text)
        ax.set_xlim(0, 2150)
        ax.set_xticks([])
        ax.tick_params(colors=text, length=0)
        ax.spines[:].set_visible(False)
    figure.supxlabel("images per second of one core", fontsize=9, color=text)
    figure.tight_layout()
    figure.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    measures = json.loads((ROOT / "benchmarks/results/all.json").read_text(encoding="utf-8"))["measures"]
    plt.rcParams.update({"svg.hashsalt": "fastft", "svg.fonttype": "none", "font.size": 9})
    for theme, colours in THEMES.items():
        draw(measures, ROOT / f"docs/images/speed-{theme}.svg", *colours)


if __name__ == "__main__":
    main()
