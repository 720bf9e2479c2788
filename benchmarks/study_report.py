"""The study's figures from its scored runs: study.json, docs/study.md and plots. `study.py report` calls it."""

import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markdown_table import markdown
from scipy.stats import t  # type: ignore[import-untyped]
from scored_runs import ScoredRuns, format_gain, shown_error, tune_correct, unpack
from study_plot import write_plots

PAPER = {
    "smaller lr": 2.0,
    "EMA": 0.3,
    "layer decay": 0.7,
    "half the length": -0.1,
    "no mixing": 0.5,
}  # points, Figure 1
STOP = "stop"  # the base at the epoch at which the rows with "stop" end
PUBLISHED = {
    STOP: "B/16 at 30 of 50 epochs: the best of its log, +0.9 against the end (85.66, 84.73)",
    "freeze 1/2": "-0.1 (paper Figure 3)",
    "freeze 3/4": "between -0.1 and -1.8 (paper Figure 3: 6 and 1 of 12 blocks)",
}
BASE, NEAR_END = "base", "two epochs earlier"
CONVERGED = 1.0  # points that the last two epochs may gain


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
    def verdict(self) -> str:
        if self.seed_error is None:
            return "one seed"
        told_apart = abs(self.gain) > t.ppf(0.975, self.seeds - 1) * self.seed_error
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


def paired_gain(hits: Mapping[int, np.ndarray], other: Mapping[int, np.ndarray]) -> PairedGain | None:
    """hits, other: seed -> bool (n,). None if no seed has both."""
    seeds = sorted(hits.keys() & other.keys())
    if not seeds:
        return None
    gains_SN = np.array([hits[s].astype(float) - other[s] for s in seeds])
    by_seed = 100 * gains_SN.mean(1)
    seed_error = float(by_seed.std(ddof=1) / len(seeds) ** 0.5) if len(seeds) > 1 else None
    image_error = 100 * float(gains_SN.mean(0).std(ddof=1) / gains_SN.shape[1] ** 0.5)
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
    """The row with the most right tune images in the first seed."""
    found = [r for r in runs if r["part"] == part and r["seed"] == 0 and r["row"] in rows]
    return str(max(found, key=lambda run: tune_correct(run, weights))["row"]) if found else None


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
    base, stop, near_end = (
        figure(runs, chosen, name, point=p) for name, p in ((BASE, -1), (STOP, 0), (NEAR_END, 1))
    )
    names = list(dict.fromkeys(r["row"] for r in runs if r["part"] == "lever"))
    levers = [stop, *(figure(runs, name, name) for name in names)]
    chain = _chain(runs, base)
    figures = [f for f in (base, *levers, *chain[:-1]) if f is not None]
    return {
        "setting": scores.setting()
        | {
            "test_images": runs[0]["images"],
            "base": chosen,
            "cpus": sorted({r["cpu"] for r in runs}),
        },
        "hours": sum(p["train_seconds"] for r in runs for p in r["points"][-1:]) / 3600
        + sum(p["score_seconds"] for r in runs for p in r["points"]) / 3600,
        "runs": len(runs),
        "figures": [_plain(f) for f in figures],
        "chain": _differences([(b, a) for a, b in itertools.pairwise(chain)]),
        "levers": _differences([(row, base) for row in levers]),
        "last_two_epochs": _differences([(base, near_end)])[0],
        "pareto": pareto(figures),
    }


def _chain(runs: Sequence[Mapping[str, Any]], base: Figure | None) -> list[Figure | None]:
    """The paper's chain, in order; rows that are not finished are None."""
    plain = list(
        dict.fromkeys(r["row"] for r in runs if r["part"] == "chain" and r["row"].startswith("no decay"))
    )
    plain.sort(key=lambda row: -float(row.rpartition(" ")[2]))
    small = tuned(runs, "chain", plain[1:], "raw")
    return [
        figure(runs, plain[0], "baseline", "raw") if plain else None,
        figure(runs, small, "smaller lr", "raw") if small else None,
        figure(runs, small, "EMA") if small else None,
        figure(runs, "layer decay", "layer decay"),
        figure(runs, "half length", "half the length"),
        None if base is None else Figure("no mixing", base.flops, base.hits),
    ]


def _differences(pairs: Sequence[tuple[Figure | None, Figure | None]]) -> list[dict[str, Any]]:
    found = [difference(row, other) for row, other in pairs if row is not None and other is not None]
    return [vars(d) | {"verdict": d.verdict} for d in found if d is not None]


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
        "## All rows\n\n" + _rows_table(found),
        "## ImageNet recipes\n\n"
        + _picture("study-recipes", "Modelled V100-hours of the recipes of B/16 at 224 px")
        + "\n\nModelled at the MFU published for a ViT (21 %), not measured; `fastft cost --frontier frugal_b16` lists more.",
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
        f"Of the paper's steps that are finished, '{best['name']}' gained most ({_gain(best)} points) and "
        f"'{worst['name']}' least ({_gain(worst)})."
    )


def _free_sentence(levers: Sequence[Mapping[str, Any]]) -> str:
    """How many ways to save lose nothing that can be told apart, and the smallest loss for a quarter and for half saved."""
    if not levers:
        return "No way to save is finished yet."
    free = [_lever(d) for d in levers if d["gain"] >= -2 * shown_error(d)]
    parts = [
        f"Of {len(levers)} ways to save, {', '.join(free) or 'none'} lose{'s' * (len(free) < 2)} at most two standard errors"
    ]
    for share, words in ((0.25, "a quarter"), (0.5, "half")):
        saving = [d for d in levers if round(d["flops"], 2) <= 1 - share]  # as shown
        if saving:
            parts.append(
                f"of those that save {words} of the FLOPs, {_lever(max(saving, key=lambda d: d['gain']))} loses least"
            )
    return "; ".join(parts) + "."


def _lever(d: Mapping[str, Any]) -> str:
    return f"'{d['name']}' ({d['flops']:.0%} of the base's FLOPs, {_gain(d)} points)"


def _state_sentence(found: Mapping[str, Any]) -> str:
    seeds = max((d["seeds"] for d in found["levers"] + found["chain"]), default=1)
    told = [d["name"] for d in found["levers"] + found["chain"] if d["verdict"] in ("better", "worse")]
    if seeds < 3:
        return (
            f"So far {found['runs']} runs are finished, with at most {seeds} seed{'s' * (seeds > 1)} of a row: that is too few "
            "to say which differences another seed would repeat."
        )
    return f"With {seeds} seeds these differences are told apart from 0: {', '.join(told) or 'none'}."


def _gain(d: Mapping[str, Any]) -> str:
    return format_gain(d["gain"], d)


def _setting(found: Mapping[str, Any]) -> str:
    s = found["setting"]
    return (
        f"DINOv2-type ViT-S/14 (not CLIP) at 56 px on CIFAR-10: {s['train_per_class']} training images per class, "
        f"{s['test_images']:,} test images, batch {s['batch']}, {s['epochs']} epochs with warm-up and "
        f"cosine, EMA ('stop': after {s['stop']} epochs), lr and layer decay chosen on "
        f"{s['tune_per_class']} other images per class of the training file ({s['base']}). {found['runs']} runs, "
        f"{found['hours']:.1f} hours of {', '.join(s['cpus'])}. A difference is taken seed by seed and image by image; ± is its "
        "standard error over seeds, or where there is one seed over test images only, which leaves out how much another seed "
        "would change. 'Told apart' means beyond the 95 % point of Student's t over seeds. FLOPs are those of training. It shows "
        "directions, not values for CLIP on ImageNet. Evaluating the EMA only changes no weight, so it is free by construction. "
        "Written by `python benchmarks/study.py report`."
    ) + _convergence(found)


def _convergence(found: Mapping[str, Any]) -> str:
    """Return a sentence that says if the base has converged."""
    last = found["last_two_epochs"]
    if last["gain"] <= CONVERGED:
        return f" The base's last two epochs change its accuracy by {_gain(last)} points: it is converged."
    return (
        f"\n\n**The base is not converged**: its last two epochs gain {_gain(last)} points. More images or epochs "
        "(`--train-per-class`) are needed."
    )


def _lever_table(found: Mapping[str, Any]) -> str:
    rows = [
        [
            d["name"],
            f"{d['flops']:.0%}",
            _gain(d),
            str(d["seeds"]),
            d["verdict"],
            PUBLISHED.get(d["name"], ""),
        ]
        for d in sorted(found["levers"], key=lambda d: -d["flops"])
    ]
    return markdown(
        ["against the base", "FLOPs", "points", "seeds", "verdict", "published for CLIP"],
        rows,
        numbers_from=1,
    )


def _chain_table(found: Mapping[str, Any]) -> str:
    rows = [
        [d["name"], d["against"], _gain(d), str(d["seeds"]), d["verdict"], f"{PAPER[d['name']]:+.1f}"]
        for d in found["chain"]
    ]
    return markdown(["step", "after", "points", "seeds", "verdict", "paper's points"], rows, numbers_from=1)


def _rows_table(found: Mapping[str, Any]) -> str:
    front = set(found["pareto"])
    rows = [
        [
            f["name"],
            f"{f['top1']:.1f}",
            str(len(f["by_seed"])),
            f"{f['flops'] / 1e12:.2f}",
            "yes" if f["name"] in front else "",
        ]
        for f in sorted(found["figures"], key=lambda f: f["flops"])
    ]
    return markdown(["row", "top-1 %", "seeds", "training TFLOP", "Pareto front"], rows, numbers_from=1)
