"""Write docs/study.md and its pictures from benchmarks/results/study_runs.jsonl: python benchmarks/study_report.py"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from scipy.stats import t  # type: ignore[import-untyped]
from study import (
    BASE_ROW,
    BASELINE,
    BATCH,
    CLASSES,
    EPOCHS,
    LEVERS,
    SMALLER,
    STOP,
    TRAIN_PER_CLASS,
    read_runs,
)

from beton_tools.base.console import markdown_table
from fastft.cost.price import predict
from fastft.recipe import load_recipe

DOCS = Path(__file__).resolve().parents[1] / "docs"
# step -> the row before it, the paper's points (Figure 1). A smaller lr is not kept: the tune images prefer the baseline's.
CHAIN = {
    "smaller lr": ("baseline", 2.0), "EMA": ("baseline", 0.3), "layer decay": ("EMA", 0.7),
    "half the length": ("layer decay", -0.1), "no mixing": ("half the length", 0.5),
}  # fmt: skip
# of a way to save: points where there is one number, and what the page says
PUBLISHED: dict[str, tuple[float | None, str]] = {
    "stop": (0.9, "+0.9 (log of B/16: 85.66 after 30 of 50 epochs, 84.73 at the end)"),
    "freeze 1/2": (-0.1, "-0.1 (paper Figure 3)"),
    "freeze 3/4": (None, "between -0.1 and -1.8 (paper Figure 3: 6 and 1 of 12 blocks)"),
}
NOT_FOR_CLIP = {
    "drop": "none for CLIP; arXiv 2208.07220, 2212.00794 have other trainings",
    "px": "none for CLIP; arXiv 1906.06423, 2204.07118 have other trainings",
}
FREE = 0.5  # points; a way to save is free if it loses less with 95 % confidence
CONFIDENCE = 0.975  # two-sided 95 %
RECIPES = (
    "final_b16", "frugal_b16", "quick_b16", "frugal_b16_half", "frugal_b16_progressive", "frugal_b16_sparse",
    "frugal_b16_progressive_half",
)  # fmt: skip
# text, grid, points, front
THEMES = {
    "light": ("#1f2328", "#d1d9e0", "#6e7781", "#0969da"),
    "dark": ("#f0f6fc", "#3d444d", "#9198a1", "#4493f8"),
}
BELOW_FRONT = 3.0  # points; rows further below the front are listed instead of drawn


@dataclass(frozen=True)
class Figure:
    """A row: which test images its runs named, by seed, and the FLOPs of one training."""

    name: str
    flops: float
    hits: Mapping[int, np.ndarray]  # seed -> bool (n,)

    @property
    def top1(self) -> float:
        return 100 * float(np.mean([hits.mean() for hits in self.hits.values()]))

    @property
    def error(self) -> float:
        """Standard error of top-1 over seeds."""
        return _error([100 * hits.mean() for hits in self.hits.values()])


@dataclass(frozen=True)
class Difference:
    """A row minus the one that it changes, in points, paired by seed and image.

    error: standard error over seeds; with one seed over test images. half_width: half of the 95 % interval of
    Student's t over seeds.
    """

    name: str
    against: str
    gain: float
    seeds: int
    error: float
    flops: float  # of the row, relative to the other

    @property
    def half_width(self) -> float:
        return float(t.ppf(CONFIDENCE, self.seeds - 1)) * self.error if self.seeds > 1 else float("inf")

    @property
    def verdict(self) -> str:
        return (
            "not told apart" if abs(self.gain) <= self.half_width else "better" if self.gain > 0 else "worse"
        )

    @property
    def text(self) -> str:
        return f"{self.gain:+.1f} ± {self.error:.1f}"


def difference(row: Figure, other: Figure) -> Difference:
    seeds = sorted(row.hits.keys() & other.hits.keys())
    gains_SN = 100 * np.array([row.hits[s].astype(float) - other.hits[s] for s in seeds])
    error = _error(gains_SN.mean(1) if len(seeds) > 1 else gains_SN[0])
    return Difference(
        row.name, other.name, float(gains_SN.mean()), len(seeds), error, row.flops / other.flops
    )


def _error(values: Sequence[float] | np.ndarray) -> float:
    return float(np.std(values, ddof=1) / len(values) ** 0.5)


def read_figures(runs: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Every row under its name on the page."""

    def figure(name: str, row: str, weights: str = "ema", point: int = -1) -> Figure:
        points = {r["seed"]: r["points"][point] for r in runs if r["row"] == row}
        size = runs[0]["images"]
        hits = {
            seed: np.unpackbits(np.frombuffer(bytes.fromhex(p[f"test_{weights}"]), np.uint8))[:size].astype(
                bool
            )
            for seed, p in sorted(points.items())
        }
        return Figure(name, next(iter(points.values()))["flops"], hits)

    found = [
        figure("base", BASE_ROW), figure("stop", BASE_ROW, point=0), *(figure(name, name) for name in LEVERS),
        figure("smaller lr", SMALLER, "raw"), figure("baseline", BASELINE, "raw"), figure("EMA", BASELINE),
        figure("layer decay", "layer decay"), figure("half the length", "half length"),
        figure("two epochs earlier", BASE_ROW, point=1), figure("twice the length", "twice the length"),
    ]  # fmt: skip
    return {f.name: f for f in found}


def pareto(figures: Sequence[Figure]) -> list[Figure]:
    """Rows that no other row beats in accuracy at as few FLOPs, cheapest first."""

    def beaten(f: Figure) -> bool:
        return any(
            o.top1 >= f.top1 and o.flops <= f.flops and (o.top1, o.flops) != (f.top1, f.flops)
            for o in figures
        )

    return sorted((f for f in figures if not beaten(f)), key=lambda f: f.flops)


class Study:
    """The figures and differences of the page."""

    def __init__(self, runs: Sequence[Mapping[str, Any]]) -> None:
        self.runs, named = runs, read_figures(runs)
        self.base = base = named["base"]
        self.chain = [
            difference(base if step == "no mixing" else named[step], named[before]) for step, (before, _) in CHAIN.items()
        ]  # fmt: skip
        self.chain[-1] = Difference("no mixing", *list(vars(self.chain[-1]).values())[1:])
        self.levers = [difference(named[name], base) for name in ("stop", *LEVERS)]
        self.last_epochs = difference(base, named.pop("two epochs earlier"))
        self.longer = difference(named.pop("twice the length"), base)
        self.figures = sorted(named.values(), key=lambda f: f.flops)
        self.front = pareto(self.figures)


# the page


def page(study: Study) -> str:
    parts = [
        "# Which savings are free: a study on CIFAR-10",
        _opening(study),
        _picture("study", "Accuracy against training FLOPs, Pareto front marked"),
        _setting(study),
        "## Ways to save",
        markdown_table(
            ["against the base", "FLOPs", "points", "seeds", "verdict", "published for CLIP"],
            [
                [d.name, f"{d.flops:.0%}", d.text, str(d.seeds), d.verdict, _published(d.name)]
                for d in sorted(study.levers, key=lambda d: -d.flops)
            ],
        ),
        "## The paper's steps",
        markdown_table(
            ["step", "after", "points", "seeds", "verdict", "paper's points"],
            [[d.name, d.against, d.text, str(d.seeds), d.verdict, f"{CHAIN[d.name][1]:+.1f}"] for d in study.chain],
        ),
        "## Against the papers",
        _against_the_papers(study),
        "## All rows",
        markdown_table(
            ["row", f"top-1 %, {len(study.base.hits)} seeds", "training TFLOP", "Pareto front"],
            [
                [f.name, f"{f.top1:.1f} ± {f.error:.1f}", f"{f.flops / 1e12:.2f}", "yes" if f in study.front else ""]
                for f in study.figures
            ],
        ),
        "## ImageNet recipes",
        _picture("study-recipes", "Modelled V100-hours of the recipes of B/16 at 224 px"),
        "Modelled, not measured; `fastft cost --frontier frugal_b16` lists more, and "
        "[Cost](cost.md) shows the cheapest for an expected accuracy.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _picture(name: str, words: str) -> str:
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="images/{name}-dark.svg">'
    return f'<picture>{dark}<img alt="{words}" src="images/{name}-light.svg"></picture>'


def _opening(study: Study) -> str:
    """The results in three sentences."""
    chain, levers = study.chain, study.levers
    best, worst = max(chain, key=lambda d: d.gain), min(chain, key=lambda d: d.gain)
    free = [_lever(d) for d in levers if d.gain - d.half_width > -FREE]
    savings = [
        f"among those that save at least {words} of the FLOPs, {_lever(max(cheap, key=lambda d: d.gain))} loses least"
        for share, words in ((0.75, "a quarter"), (0.5, "half"))
        if (cheap := [d for d in levers if round(d.flops, 2) <= share])
    ]
    told = [sum(d.verdict != "not told apart" for d in part) for part in (levers, chain)]
    rest = [f"'{d.name}'" for d in [*levers, *chain] if d.verdict == "not told apart"]
    return (
        f"Of the paper's {len(chain)} steps, the best here is '{best.name}' ({best.text} points) and the worst '{worst.name}' "
        f"({worst.text}). Of {len(levers)} ways to save, {' and '.join(free) or 'none'} is shown to lose less than {FREE} points "
        f"(95 % confidence); {'; '.join(savings)}. With {len(study.base.hits)} seeds, {told[0]} of these "
        f"{len(levers)} changes and {told[1]} of the {len(chain)} steps are told apart from no change; not {', '.join(rest)}."
    )


def _lever(d: Difference) -> str:
    return f"'{d.name}' ({d.flops:.0%} of the base's FLOPs, {d.text} points)"


def _setting(study: Study) -> str:
    points = [p for r in study.runs for p in r["points"]]
    hours = sum(r["points"][-1]["train_seconds"] for r in study.runs) + sum(
        p["score_seconds"] for p in points
    )
    return (
        f"DINOv2-type ViT-S/14 (not CLIP) at 56 px on CIFAR-10: {TRAIN_PER_CLASS} training images per class, "
        f"{study.runs[0]['images']:,} test images, batch {BATCH}, {EPOCHS} epochs ({_steps()} steps) with warm-up and cosine, "
        f"EMA ('stop': after {STOP} epochs), lr and layer decay chosen on 50 other images per class of the training file "
        f"({BASE_ROW}). {len(study.runs)} runs, {hours / 3600:.1f} hours of {', '.join(sorted({r['cpu'] for r in study.runs}))}. "
        "A difference is taken seed by seed and image by image; ± is its standard error over seeds, or where there is one seed "
        "over test images only, which leaves out how much another seed would change. 'Told apart' means beyond the 95 % point of "
        "Student's t over seeds. FLOPs are those of training. 'freeze 1/2': the lower half of the blocks is not trained. "
        "'drop 1/2': half of the patches is left out. '42 px, last 4 epochs 56': images of 42 px until the last 4 epochs. The "
        "study shows directions, not values for CLIP on ImageNet. Evaluating the EMA only changes no weight, so it is free by "
        "construction. Written by `python benchmarks/study_report.py`. The base's last two epochs change its accuracy by "
        f"{study.last_epochs.text} points: its schedule ends converged. Twice the length changes it by "
        f"{study.longer.text} (1 seed)."
    )


def _steps() -> int:
    return EPOCHS * (CLASSES * TRAIN_PER_CLASS // BATCH)


def _against_the_papers(study: Study) -> str:
    """The figures that are outside their 95 % interval of a published number."""
    known = [(d, PUBLISHED[d.name][0]) for d in study.levers if d.name in PUBLISHED]
    known += [(d, CHAIN[d.name][1]) for d in study.chain]
    against = [
        f"'{d.name}' {d.text} here, {points:+.1f} published"
        for d, points in known
        if points is not None and abs(d.gain - points) > d.half_width
    ]
    return (
        f"Published numbers outside the 95 % interval of their figures here, {len(against)} of "
        f"{sum(points is not None for _, points in known)}: {'; '.join(against)}. One reason may be the size: the base has "
        f"{_steps()} steps of {BATCH} images, the paper's B/16 run 31,250 of 2,048, and an image of 56 px has 16 patches instead "
        "of 196. A short run has less to spare. Do not carry these losses over to ImageNet."
    )


def _published(name: str) -> str:
    if name in PUBLISHED:
        return PUBLISHED[name][1]
    return "; ".join(words for part, words in NOT_FOR_CLIP.items() if part in name) if "," not in name else ""


# pictures


def write_plots(study: Study, folder: Path) -> None:
    """Write `study-light.svg`, `study-recipes-light.svg` and their dark forms; the same figures give the same bytes."""
    plt.rcParams.update({"svg.hashsalt": "fastft", "svg.fonttype": "none", "font.size": 9})
    for theme, (text, grid, points, front) in THEMES.items():
        for name, draw in (("study", draw_front), ("study-recipes", draw_recipes)):
            figure, axes = plt.subplots(figsize=(7.2, 4.0))
            draw(axes, study, text, points, front)
            axes.grid(color=grid, linewidth=0.5)
            axes.set_axisbelow(True)
            axes.tick_params(colors=text, which="both")
            for label in (axes.title, axes.xaxis.label, axes.yaxis.label):
                label.set_color(text)
            for spine in axes.spines.values():
                spine.set_color(grid)
            figure.tight_layout()
            figure.savefig(folder / f"{name}-{theme}.svg", transparent=True, metadata={"Date": None})
            plt.close(figure)


def draw_front(axes: Axes, study: Study, text: str, points: str, front: str) -> None:
    """Top-1 of every row against its training FLOPs; rows on the Pareto front are joined and numbered."""
    floor = min(f.top1 for f in study.front) - BELOW_FRONT
    for f in (f for f in study.figures if f.top1 >= floor):
        colour = front if f in study.front else points
        axes.errorbar(f.flops / 1e12, f.top1, yerr=f.error, fmt="o", color=colour, markersize=5, elinewidth=1)
    for number, f in enumerate(study.front, 1):
        place, side = ((-4, 5), "right") if number % 2 else ((5, -10), "left")
        axes.annotate(
            str(number), (f.flops / 1e12, f.top1), xytext=place, textcoords="offset points", ha=side, fontsize=8, color=text
        )  # fmt: skip
    axes.plot([f.flops / 1e12 for f in study.front], [f.top1 for f in study.front], color=front, linewidth=1)
    key = [f"{number}: {f.name}" for number, f in enumerate(study.front, 1)]
    key += [
        f"not drawn: {f.name}, {f.flops / 1e12:.0f} TFLOP, {f.top1:.1f} %"
        for f in study.figures
        if f.top1 < floor
    ]
    axes.text(
        0.98, 0.03, "\n".join(key), transform=axes.transAxes, ha="right", multialignment="left", fontsize=7, color=text
    )  # fmt: skip
    axes.margins(x=0.1, y=0.1)
    axes.set_xlabel("training TFLOP")
    axes.set_ylabel("top-1 % of the test images")
    axes.set_title(
        "CIFAR-10, ViT-S/14 at 56 px: accuracy against training FLOPs (line: Pareto front)", fontsize=9
    )


def draw_recipes(axes: Axes, _: Study, text: str, points: str, front: str) -> None:
    """Expected V100-hours of the ImageNet recipes of B/16."""
    for place, name in enumerate(reversed(RECIPES)):
        recipe = load_recipe(name)
        hours, top1 = predict(recipe, ["V100"])["V100"]["hours"], recipe.about.top1
        axes.barh(place, hours, color=points if top1 is None else front, height=0.6)
        words = f"{hours:.1f} h; " + ("not run" if top1 is None else f"expected {top1:g} %")
        axes.annotate(words, (hours, place), xytext=(4, -3), textcoords="offset points", color=text)
    axes.set_yticks(range(len(RECIPES)), reversed(RECIPES))
    axes.set_xlim(0, 42)
    axes.set_xlabel("V100-hours, modelled")
    axes.set_title("ImageNet recipes of CLIP ViT-B/16 at 224 px", fontsize=9)


if __name__ == "__main__":
    found = Study(read_runs())
    write_plots(found, DOCS / "images")
    (DOCS / "study.md").write_text(page(found), encoding="utf-8")
