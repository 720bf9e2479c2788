"""The study's figures from its scored runs: study.json, docs/study.md and plots. `study.py report` calls it."""

import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t  # type: ignore[import-untyped]
from scored_runs import ScoredRuns, format_gain, most_correct, shown_error, unpack
from study_plot import write_plots

from beton_tools.base.console import markdown_table as markdown

# points, Figure 1
PAPER = {"smaller lr": 2.0, "EMA": 0.3, "layer decay": 0.7, "half the length": -0.1, "no mixing": 0.5}
STOP = "stop"  # the base at the epoch at which the rows with "stop" end
# of a row: points where there is one number, and what the page says
PUBLISHED: dict[str, tuple[float | None, str]] = {
    STOP: (0.9, "+0.9 (log of B/16: 85.66 after 30 of 50 epochs, 84.73 at the end)"),
    "freeze 1/2": (-0.1, "-0.1 (paper Figure 3)"),
    "freeze 3/4": (None, "between -0.1 and -1.8 (paper Figure 3: 6 and 1 of 12 blocks)"),
}
NOT_FOR_CLIP = {
    "drop": "none for CLIP; arXiv 2208.07220, 2212.00794 have other trainings",
    "px": "none for CLIP; arXiv 1906.06423, 2204.07118 have other trainings",
}
BASE, NEAR_END, LONG = "base", "two epochs earlier", "twice the length"
CONVERGED = 1.0  # points that the base's last two epochs may change
UNTRAINED = 1.5  # times the accuracy of guessing, below which a run is called untrained
FREE = 0.5  # points; a way to save is free if it loses less with 95 % confidence
CONFIDENCE = 0.975  # two-sided 95 %


@dataclass(frozen=True)
class Figure:
    """A row of the study: which test images its runs named, by seed, and the FLOPs of one training."""

    name: str
    flops: float
    hits: Mapping[int, np.ndarray]  # seed -> bool (n,)

    @property
    def top1(self) -> float:
        return 100 * float(np.mean([hits.mean() for hits in self.hits.values()]))

    @property
    def seeds(self) -> int:
        return len(self.hits)


@dataclass(frozen=True)
class Difference:
    """A row minus the one that it changes, in points: the mean over the seeds that both have.

    seed_error: standard error over seeds; None for one. image_error: over test images, at these seeds.
    """

    name: str
    against: str
    gain: float
    seeds: int
    seed_error: float | None
    image_error: float
    flops: float  # of the row, relative to the other

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval of Student's t over seeds, in points; None for one seed."""
        return None if self.seed_error is None else float(t.ppf(CONFIDENCE, self.seeds - 1)) * self.seed_error

    @property
    def verdict(self) -> str:
        if self.half_width is None:
            return "one seed"
        told_apart = abs(self.gain) > self.half_width
        return ("better" if self.gain > 0 else "worse") if told_apart else "not told apart"


@dataclass(frozen=True)
class PairedGain:
    """Difference in accuracy between two rows, in points, paired by seed and image.

    seed_error: standard error over seeds; None for one. image_error: over test images, at these seeds.
    """

    by_seed: list[float]
    seed_error: float | None
    image_error: float

    @property
    def mean(self) -> float:
        return statistics.fmean(self.by_seed)


def paired_gain(
    hits: Mapping[int, np.ndarray], other: Mapping[int, np.ndarray], same_images: bool = True
) -> PairedGain | None:
    """hits, other: seed -> bool (n,). same_images: whether all seeds have the same images. None if no seed has both."""
    seeds = sorted(hits.keys() & other.keys())
    if not seeds:
        return None
    gains_SN = np.array([hits[s].astype(float) - other[s] for s in seeds])
    by_seed = 100 * gains_SN.mean(1)
    seed_error = float(by_seed.std(ddof=1) / len(seeds) ** 0.5) if len(seeds) > 1 else None
    of_images_N = gains_SN.mean(0) if same_images else gains_SN.ravel()
    image_error = 100 * float(of_images_N.std(ddof=1) / len(of_images_N) ** 0.5)
    return PairedGain(by_seed.tolist(), seed_error, image_error)


def difference(row: Figure, other: Figure) -> Difference | None:
    """None if no seed has both rows."""
    gain = paired_gain(row.hits, other.hits)
    if gain is None:
        return None
    return Difference(
        row.name,
        other.name,
        gain.mean,
        len(gain.by_seed),
        gain.seed_error,
        gain.image_error,
        row.flops / other.flops,
    )


# from runs to figures -------------------------------------------------------------------------------------------------


def figure(
    runs: Sequence[Mapping[str, Any]], row: str, name: str, weights: str = "ema", point: int = -1
) -> Figure | None:
    """The figure of a row of the study under a name of the page; None if no run of it is finished."""
    own = [run for run in runs if run["row"] == row]
    if not own:
        return None
    hits = {r["seed"]: unpack(r["points"][point][f"test_{weights}"], r["images"]) for r in own}
    return Figure(name, own[0]["points"][point]["flops"], hits)


def tuned(runs: Sequence[Mapping[str, Any]], part: str, rows: Sequence[str], weights: str) -> str | None:
    """The row that `most_correct` chooses in the first seed."""
    found = [r for r in runs if r["part"] == part and r["seed"] == 0 and r["row"] in rows]
    return str(most_correct(found, weights)["row"]) if found else None


def collect(scores: ScoredRuns) -> dict[str, Any]:
    """Everything that the page shows, as plain values.

    Raises:
        SystemExit: the base is not finished.
    """
    runs = scores.all()
    grid = list(dict.fromkeys(r["row"] for r in runs if r["part"] == "grid"))
    chosen = tuned(runs, "grid", grid, "ema")
    if chosen is None:
        raise SystemExit(f"{scores.path}: the base is not finished yet")
    options = next(r["options"] for r in runs if r["row"] == chosen)
    runs = [
        r for r in runs if r["part"] not in ("lever", "length") or options.items() <= r["options"].items()
    ]
    base, stop, near_end = (
        figure(runs, chosen, name, point=p) for name, p in ((BASE, -1), (STOP, 0), (NEAR_END, 1))
    )
    names = list(dict.fromkeys(r["row"] for r in runs if r["part"] == "lever"))
    levers = [stop, *(figure(runs, name, name) for name in names)]
    setting = scores.setting()
    classes = runs[0]["images"] // setting["test_per_class"]
    steps = _steps(runs, base)
    rows = {
        f.name: f
        for f in (base, *levers, *itertools.chain(*steps))
        if f is not None and f.name != "no mixing"
    }
    untrained = [f.name for f in rows.values() if f.top1 < UNTRAINED * 100 / classes]
    steps = [pair for pair in steps if not any(f is not None and f.name in untrained for f in pair)]
    figures = _same_seeds(list(rows.values()))
    return {
        "setting": setting
        | {
            "test_images": runs[0]["images"],
            "base": chosen,
            "steps": setting["epochs"] * (classes * setting["train_per_class"] // setting["batch"]),
            "cpus": sorted({r["cpu"] for r in runs}),
        },
        "hours": sum(p["train_seconds"] for r in runs for p in r["points"][-1:]) / 3600
        + sum(p["score_seconds"] for r in runs for p in r["points"]) / 3600,
        "runs": len(runs),
        "figures": [_plain(f) for f in figures],
        "chain": _differences(steps),
        "untrained": untrained,
        "levers": _differences([(row, base) for row in levers]),
        "last_two_epochs": _differences([(base, near_end)])[0],
        "twice_the_length": next(iter(_differences([(figure(runs, LONG, LONG), base)])), None),
        "pareto": pareto(figures),
    }


def _same_seeds(figures: Sequence[Figure]) -> list[Figure]:
    """The figures at the seeds that all of them have: only those are compared without pairing."""
    shared = set.intersection(*(set(f.hits) for f in figures))
    return [replace(f, hits={seed: f.hits[seed] for seed in sorted(shared)}) for f in figures]


def _steps(
    runs: Sequence[Mapping[str, Any]], base: Figure | None
) -> list[tuple[Figure | None, Figure | None]]:
    """The steps of the paper's chain as (row, row before it); rows that are not finished are None.

    A smaller lr is kept in the rows after it only if the tune images prefer it.
    """
    plain = list(
        dict.fromkeys(r["row"] for r in runs if r["part"] == "chain" and r["row"].startswith("no decay"))
    )
    plain.sort(key=lambda row: -float(row.rpartition(" ")[2]))
    rows = dict(zip(("baseline", "smaller lr"), plain, strict=False))
    raw = {name: figure(runs, row, name, "raw") for name, row in rows.items()}
    kept = tuned(runs, "chain", plain, "raw") or ""
    before_ema = next((raw[name] for name, row in rows.items() if row == kept), None)
    ema, decay = figure(runs, kept, "EMA"), figure(runs, "layer decay", "layer decay")
    half = figure(runs, "half length", "half the length")
    mixing = None if base is None else replace(base, name="no mixing")
    first = (raw.get("smaller lr"), raw.get("baseline"))
    return [first, (ema, before_ema), (decay, ema), (half, decay), (mixing, half)]


def _differences(pairs: Sequence[tuple[Figure | None, Figure | None]]) -> list[dict[str, Any]]:
    found = [difference(row, other) for row, other in pairs if row is not None and other is not None]
    return [vars(d) | {"half_width": d.half_width, "verdict": d.verdict} for d in found if d is not None]


def _plain(f: Figure) -> dict[str, Any]:
    by_seed = {str(seed): 100 * float(hits.mean()) for seed, hits in sorted(f.hits.items())}
    values = list(by_seed.values())
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    images = 100 * (f.top1 / 100 * (1 - f.top1 / 100) / len(next(iter(f.hits.values())))) ** 0.5
    return {
        "name": f.name, "flops": f.flops, "top1": f.top1, "by_seed": by_seed, "seed_error": error, "image_error": images,
    }  # fmt: skip


def pareto(figures: Sequence[Figure]) -> list[str]:
    """Names of the rows that no other row beats in accuracy at as few FLOPs."""
    return [
        f.name
        for f in figures
        if not any(
            o.top1 >= f.top1 and o.flops <= f.flops and (o.top1, o.flops) != (f.top1, f.flops)
            for o in figures
        )
    ]


# the page -------------------------------------------------------------------------------------------------------------


def write_report(out: Path, docs: Path) -> None:
    """Write study.json, docs/study.md and the plots from the runs that are finished."""
    found = collect(ScoredRuns(out / "study_runs.jsonl"))
    (out / "study.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_plots(found, docs / "images")
    (docs / "study.md").write_text(page(found), encoding="utf-8")
    print(f"written: {out / 'study.json'}, {docs / 'study.md'}, {docs / 'images'}/study-*.svg")


def page(found: Mapping[str, Any]) -> str:
    parts = [
        "# Which savings are free: a study on CIFAR-10",
        " ".join(sentences(found)),
        _picture("study"),
        _setting(found),
        "## Ways to save\n\n" + _lever_table(found),
        "## The paper's steps\n\n" + _chain_table(found),
        "## Against the papers\n\n" + _against_the_papers(found),
        "## All rows\n\n" + _rows_table(found),
        "## ImageNet recipes\n\n"
        + _picture("study-recipes", "Modelled V100-hours of the recipes of B/16 at 224 px")
        + "\n\nModelled at the MFU published for a ViT (21 %), not measured; `fastft cost --frontier frugal_b16` lists more, and "
        "[Cost](cost.md) shows the cheapest for an expected accuracy.",
    ]
    return "\n\n".join(parts) + "\n"


def _picture(name: str, words: str = "Accuracy against training FLOPs, Pareto front marked") -> str:
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="images/{name}-dark.svg">'
    return f'<picture>{dark}<img alt="{words}" src="images/{name}-light.svg"></picture>'


def sentences(found: Mapping[str, Any]) -> list[str]:
    """The results in three sentences."""
    return [_chain_sentence(found["chain"]), _free_sentence(found["levers"]), _state_sentence(found)]


def _chain_sentence(chain: Sequence[Mapping[str, Any]]) -> str:
    if not chain:
        return "No two steps of the paper's chain are finished yet."
    if len(chain) == 1:
        return f"Of the paper's steps only '{chain[0]['name']}' is finished: {_gain(chain[0])} points."
    best, worst = max(chain, key=lambda d: d["gain"]), min(chain, key=lambda d: d["gain"])
    return (
        f"Of the paper's {len(chain)} steps, the best here is '{best['name']}' ({_gain(best)} points) and the worst "
        f"'{worst['name']}' ({_gain(worst)})."
    )


def _free_sentence(levers: Sequence[Mapping[str, Any]]) -> str:
    """Which ways to save are free, and the smallest loss for a quarter and for half saved."""
    if not levers:
        return "No way to save is finished yet."
    free = [_lever(d) for d in levers if d["half_width"] is not None and d["gain"] - d["half_width"] > -FREE]
    shown = " and ".join(free) or "none"
    parts = [
        f"Of {len(levers)} ways to save, {shown} is shown to lose less than {FREE} points (95 % confidence)"
    ]
    for share, words in ((0.25, "a quarter"), (0.5, "half")):
        saving = [d for d in levers if round(d["flops"], 2) <= 1 - share]  # as shown
        if saving:
            parts.append(
                f"among those that save at least {words} of the FLOPs, {_lever(max(saving, key=lambda d: d['gain']))} loses least"
            )
    return "; ".join(parts) + "."


def _lever(d: Mapping[str, Any]) -> str:
    return f"'{d['name']}' ({d['flops']:.0%} of the base's FLOPs, {_gain(d)} points)"


def _state_sentence(found: Mapping[str, Any]) -> str:
    levers, chain = found["levers"], found["chain"]
    seeds = [d["seeds"] for d in [*levers, *chain]] or [1]
    if min(seeds) < 3:
        shown = str(min(seeds)) if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
        return (
            f"So far {found['runs']} runs are finished, with {shown} seed{'s' * (max(seeds) > 1)} of a row: that is too few "
            "to say which differences another seed would repeat."
        )
    told = [sum(d["verdict"] != "not told apart" for d in part) for part in (levers, chain)]
    rest = [f"'{d['name']}'" for d in [*levers, *chain] if d["verdict"] == "not told apart"]
    return (
        f"With {min(seeds)} seeds, {told[0]} of these {len(levers)} changes and {told[1]} of the {len(chain)} steps are told "
        f"apart from no change{'; not ' * bool(rest)}{', '.join(rest)}."
    )


def _gain(d: Mapping[str, Any]) -> str:
    return format_gain(d["gain"], d)


def _setting(found: Mapping[str, Any]) -> str:
    s = found["setting"]
    return (
        f"DINOv2-type ViT-S/14 (not CLIP) at 56 px on CIFAR-10: {s['train_per_class']} training images per class, "
        f"{s['test_images']:,} test images, batch {s['batch']}, {s['epochs']} epochs ({s['steps']} steps) with warm-up and "
        f"cosine, EMA ('stop': after {s['stop']} epochs), lr and layer decay chosen on "
        f"{s['tune_per_class']} other images per class of the training file ({s['base']}). {found['runs']} runs, "
        f"{found['hours']:.1f} hours of {', '.join(s['cpus'])}. A difference is taken seed by seed and image by image; ± is its "
        "standard error over seeds, or where there is one seed over test images only, which leaves out how much another seed "
        "would change. 'Told apart' means beyond the 95 % point of Student's t over seeds. FLOPs are those of training. "
        "'freeze 1/2': the lower half of the blocks is not trained. 'drop 1/2': half of the patches is left out. "
        "'42 px, last 4 epochs 56': images of 42 px until the last 4 epochs. The study shows "
        "directions, not values for CLIP on ImageNet. Evaluating the EMA only changes no weight, so it is free by construction. "
        "Written by `python benchmarks/study.py report`."
    ) + _convergence(found)


def _convergence(found: Mapping[str, Any]) -> str:
    """Return sentences that say how far the base has converged."""
    last, long = found["last_two_epochs"], found["twice_the_length"]
    words = (
        ""
        if long is None
        else f" Twice the length changes it by {_gain(long)} ({long['seeds']} seed{'s' * (long['seeds'] > 1)})."
    )
    if abs(last["gain"]) <= CONVERGED:
        return f" The base's last two epochs change its accuracy by {_gain(last)} points: its schedule ends converged.{words}"
    return (
        f"\n\n**The base is not converged**: its last two epochs change its accuracy by {_gain(last)} points.{words} More "
        "images or epochs (`--train-per-class`) are needed."
    )


def _against_the_papers(found: Mapping[str, Any]) -> str:
    """Return what is outside its 95 % interval of a published number."""
    known = [(d, PUBLISHED[d["name"]][0]) for d in found["levers"] if d["name"] in PUBLISHED]
    known += [(d, PAPER[d["name"]]) for d in found["chain"]]
    against = [
        f"'{d['name']}' {_gain(d)} here, {points:+.1f} published"
        for d, points in known
        if points is not None and d["half_width"] is not None and abs(d["gain"] - points) > d["half_width"]
    ]
    if not against:
        return (
            "No published number lies outside the 95 % interval of its figure here; one seed has no interval."
        )
    s = found["setting"]
    return (
        f"Published numbers outside the 95 % interval of their figures here, {len(against)} of "
        f"{sum(p is not None for _, p in known)}: {'; '.join(against)}. One reason may be the size: the base has {s['steps']} "
        f"steps of {s['batch']} images, "
        "the paper's B/16 run 31,250 of 2,048, and an image of 56 px has 16 patches instead of 196. A short run has less to "
        "spare. Do not carry these losses over to ImageNet."
    )


def _published(name: str) -> str:
    if name in PUBLISHED:
        return PUBLISHED[name][1]
    return "; ".join(words for part, words in NOT_FOR_CLIP.items() if part in name) if "," not in name else ""


def _lever_table(found: Mapping[str, Any]) -> str:
    rows = [
        [
            d["name"],
            f"{d['flops']:.0%}",
            _gain(d),
            str(d["seeds"]),
            d["verdict"],
            _published(d["name"]),
        ]
        for d in sorted(found["levers"], key=lambda d: -d["flops"])
    ]
    return markdown(
        ["against the base", "FLOPs", "points", "seeds", "verdict", "published for CLIP"],
        rows,
        left=1,
    )


def _chain_table(found: Mapping[str, Any]) -> str:
    rows = [
        [d["name"], d["against"], _gain(d), str(d["seeds"]), d["verdict"], f"{PAPER[d['name']]:+.1f}"]
        for d in found["chain"]
    ]
    table = markdown(["step", "after", "points", "seeds", "verdict", "paper's points"], rows, left=1)
    names = " and ".join(f"'{name}'" for name in found["untrained"])
    return table + (
        f"\n\n{names} ended near chance and are in no step: their learning rate is too high." if names else ""
    )


def _rows_table(found: Mapping[str, Any]) -> str:
    front = set(found["pareto"])
    rows = [
        [f["name"], format_top1(f), f"{f['flops'] / 1e12:.2f}", "yes" if f["name"] in front else ""]
        for f in sorted(found["figures"], key=lambda f: f["flops"])
    ]
    seeds = len(found["figures"][0]["by_seed"])
    words = f"top-1 %, {seeds} seed{'s' * (seeds > 1)}"
    return markdown(["row", words, "training TFLOP", "Pareto front"], rows, left=1)


def format_top1(figure: Mapping[str, Any]) -> str:
    return f"{figure['top1']:.1f} ± {shown_error(figure):.1f}"
